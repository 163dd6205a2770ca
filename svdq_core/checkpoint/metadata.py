"""The metadata of a nunchaku file, worked out from the tensors of the model that goes into it."""

import json
from pathlib import Path

import torch
from torch import Tensor

from ...kernels.format import GROUP_SIZE_INT4, GROUP_SIZE_NVFP4
from ..errors import ArchitectureError
from ..layer import QuantizedLayer
from ..quantized_model import QuantizedModel

_INT4 = {"dtype": "int4", "scale_dtype": None, "group_size": GROUP_SIZE_INT4}
_NVFP4_WEIGHT = {"dtype": "fp4_e2m1_all", "scale_dtype": [None, "fp8_e4m3_nan"], "group_size": GROUP_SIZE_NVFP4}
_NVFP4_ACTIVATION = {"dtype": "fp4_e2m1_all", "scale_dtype": "fp8_e4m3_nan", "group_size": GROUP_SIZE_NVFP4}


def pack_version() -> str:
    """The version of this pack, as pyproject.toml states it."""
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("version"))
    return line.split('"')[1]


def provenance(source: str) -> dict[str, str]:
    """What wrote a file, and from which one."""
    written = {"svdquant_written_by": f"ComfyUI-SVDQuant {pack_version()}"}
    return written | ({"svdquant_source": source} if source else {})


def nunchaku_metadata(model: QuantizedModel) -> dict[str, str]:
    """All keys that nunchaku's loaders read, those that the model already carries taken as they are.

    Keys: config (diffusers), comfy_config, model_class, quantization_config.

    Raises:
        ArchitectureError: the family's description does not say what they are.
    """
    int4 = model.precision == "int4"
    quantization = {
        "method": "svdquant",
        "weight": _INT4 if int4 else _NVFP4_WEIGHT,
        "activation": _INT4 if int4 else _NVFP4_ACTIVATION,
        "rank": max(model.ranks, default=0),
    }
    family = model.architecture
    if family.metadata is None:
        raise ArchitectureError(
            f"{family.title}: what nunchaku's files say about such a model (metadata) is not described, so none can be "
            "written. Write svdquant, comfy or bf16."
        )
    depths = family.count_blocks([*model.layers, *model.plain], "host")
    tensors = model.plain | {f"{host}.weight": _outline(layer) for host, layer in model.layers.items()}
    said = family.metadata(tensors, depths)
    made = said | {"quantization_config": quantization | said.get("quantization_config", {})}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in made.items()}
    return texts | model.metadata | {"quantization_config": texts["quantization_config"]}


def _outline(layer: QuantizedLayer) -> Tensor:
    """The shape of a quantized layer's weight, which is all that metadata are made of."""
    return torch.empty(layer.out_features, layer.in_features, device="meta")
