"""A 16-bit text encoder of the host's whose Linears know what their weights are called in the file."""

from functools import cache
from pathlib import Path

import comfy.model_management
from torch import Tensor, nn

from ....svdq_core.checkpoint.read_errors import printable
from ..files import embedding_folders
from ..model.quantized_linear import SVDQuantLinear, operations
from ..model.text_encoder import COMPUTE, build_text_encoder, read_unquantized

ANY = "stable_diffusion"  # ComfyUI then goes by the file alone
UMT5_MARK = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"  # T5 has it in its first block only
_ATTRIBUTE = "svdq_file_name"


class NamedLinear(SVDQuantLinear):
    """Notes where its weight comes from; the tensors keep their marks however the host renames entries."""

    file_name = ""

    def _load_from_state_dict(self, *args, **more):
        state_dict, prefix = args[:2]
        self.file_name = getattr(state_dict.get(prefix + "weight"), _ATTRIBUTE, "")
        super()._load_from_state_dict(*args, **more)


@cache
def _operations() -> type:
    base = operations(COMPUTE)
    return type("NamedOperations", (base,), {"Linear": type("NamedLinear", (NamedLinear,), {"compute": COMPUTE})})


def load_16_bit(source: Path):
    """The host's CLIP of a file that holds one text encoder, and the type that it was loaded as.

    Raises:
        CheckpointError, SVDQuantError: it is no such file.
    """
    tensors = read_unquantized(str(source))
    for name, tensor in tensors.items():
        setattr(tensor, _ATTRIBUTE, name.removesuffix(".weight"))
    kind = type_of(tensors)
    options = {"custom_operations": _operations()}
    return build_text_encoder([tensors], embedding_folders(), kind, options, shown=printable(source.name)), kind


def type_of(tensors: dict[str, Tensor]) -> str:
    """The type that makes ComfyUI load one encoder by itself: umT5 is the only one that it takes for another."""
    return "wan" if UMT5_MARK in tensors else ANY


def linears_of(clip) -> dict[str, nn.Module]:
    """Name in the file -> the host's module."""
    return {m.file_name: m for m in clip.cond_stage_model.modules() if getattr(m, "file_name", "")}


def unload(clip) -> None:
    """Give its memory on the device back to the host."""
    comfy.model_management.free_memory(1e30, clip.patcher.load_device)
