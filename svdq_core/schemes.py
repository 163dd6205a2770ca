"""Which tensors a part has in each number format: names, shapes, dtypes. Their meaning: kernels/format.py."""

import torch

from ..kernels.format import GROUP_SIZE_AWQ, GROUP_SIZE_INT4, GROUP_SIZE_NVFP4
from .values import E4M3, FLOAT

# scheme -> tensor name -> (shape in symbols, dtypes, required). K2 = K//2, G = K//group_size of the scheme.
_LOW_RANK = {
    "smooth_factor": (("K",), FLOAT, True),
    "proj_down": (("K", "R"), FLOAT, True),
    "proj_up": (("N", "R"), FLOAT, True),
}
# What no arithmetic here uses, kept so that a file can be written back byte for byte.
KEPT = {"smooth_factor_orig": (("K",), FLOAT, False), "stored_bias": (("N",), FLOAT, False)}
# Worked out of the others when a model is loaded, for the mode that will run it; in no file. They lie at the end of the
# blob, so that the blob without them is its beginning.
DERIVED = ("channel_scales",)
_DERIVED = {"channel_scales": (("N",), (torch.float32,), False)}
SCHEME_TENSORS = {
    "int4": {
        "qweight": (("N", "K2"), (torch.int8,), True),
        "wscales": (("G", "N"), FLOAT, True),
        **_LOW_RANK,
        "bias": (("N",), FLOAT, False),  # of a part stacked on columns; otherwise the bias belongs to the layer
        **KEPT,
        **_DERIVED,
    },
    "nvfp4": {
        "qweight": (("N", "K2"), (torch.int8,), True),
        "wscales": (("G", "N"), E4M3, True),
        "wtscale": ((1,), FLOAT, False),
        "wcscales": (("N",), FLOAT, False),
        **_LOW_RANK,
        "bias": (("N",), FLOAT, False),
        **KEPT,
        **_DERIVED,
    },
    "int8": {
        "qweight": (("N", "K"), (torch.int8,), True),
        "wscales": (("N",), (torch.float32,), True),
        **_LOW_RANK,
        "bias": (("N",), FLOAT, False),
        **KEPT,
    },
    "awq": {
        "qweight": (("N", "K2"), (torch.int8,), True),
        "wscales": (("G", "N"), FLOAT, True),
        "wzeros": (("G", "N"), FLOAT, True),
        "proj_down": (("K", "R"), FLOAT, False),  # a LoRA that was baked into the file
        "proj_up": (("N", "R"), FLOAT, False),
        **KEPT,
    },
}
# consecutive k that share a scale; int8 has one scale for all of an output channel's k
GROUP_SIZE = {"int4": GROUP_SIZE_INT4, "nvfp4": GROUP_SIZE_NVFP4, "awq": GROUP_SIZE_AWQ, "int8": 1}
