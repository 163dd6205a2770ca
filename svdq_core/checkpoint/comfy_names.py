"""How comfy-native files name the tensors of a quantized layer, and the JSON that each such layer carries.

Two producers spell the same tensors differently; what is written here is the first spelling, which both
documentations of the format give. Source: comfy-kitchen's layout classes, comfy-quants' format documentation.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from .container import PREFIXES, Checkpoint, parse_json, read_json

SVDQUANT, AWQ = "svdquant_w4a4", "awq_w4a16"
TILE_PACKED = "kitchen_tile_packed_w4a4"
CONFIG = "comfy_quant"  # the tensor of UTF-8 JSON of a layer
CONFIGS = "_quantization_metadata"  # or all of them in the file's metadata
MAX_CONFIG_BYTES = 65536

# what this pack adds: a layer that only it can read in one piece
PART = "parts"  # LAYER.parts.0, LAYER.parts.1: what one layer of this format cannot hold together
STACKED = "svdquant_stacked"  # "rows" or "columns": how these lie in the layer
PART_ROWS, PART_RANKS = "svdquant_part_rows", "svdquant_part_ranks"  # of parts joined in one layer

# canonical tensor name -> suffixes, the first is written
_SHARED = {"qweight": ("weight",), "wscales": ("weight_scale",), "bias": ("bias",)}
SUFFIXES = {
    SVDQUANT: _SHARED
    | {name: (name, f"weight_{name}") for name in ("smooth_factor", "proj_down", "proj_up")}
    | {"smooth_factor_orig": ("smooth_factor_orig",)},
    AWQ: _SHARED | {"wzeros": ("weight_zero", "weight_zeros"), "stored_bias": ("stored_bias",)},
}


def layer_configs(checkpoint: Checkpoint) -> dict[str, dict]:
    """Layer name -> its JSON, of every layer that has one. A layer's own tensor goes before the file's metadata.

    Raises:
        CheckpointError: one of them is damaged.
    """
    configs = {}
    listed = read_json(checkpoint, CONFIGS).get("layers", {})
    for name, config in listed.items() if isinstance(listed, Mapping) else ():
        short = next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name)
        configs[short] = config
    for name in checkpoint:
        if name.endswith(f".{CONFIG}"):
            layer = name.removesuffix(f".{CONFIG}")
            configs[layer] = _read_config(checkpoint, name)
    for layer, config in configs.items():
        if not isinstance(config, dict) or not isinstance(config.get("format"), str):
            raise CheckpointError(f"{checkpoint.name}: {layer}: its quantization config has no format. It is damaged.")
    return configs


def _read_config(checkpoint: Checkpoint, name: str) -> dict:
    where, shape = f"{checkpoint.name}: {name}", checkpoint.shape(name)
    if checkpoint.dtype(name) not in ("U8", "I8") or len(shape) != 1 or shape[0] > MAX_CONFIG_BYTES:
        raise CheckpointError(f"{where} is {checkpoint.dtype(name)} {shape}, expected a row of bytes. It is damaged.")
    data = checkpoint[name].view(torch.uint8).numpy().tobytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not text ({error}). The file is damaged.") from error
    return parse_json(text, where)


def config_tensor(config: dict) -> Tensor:
    """The JSON of a layer as its tensor."""
    return torch.frombuffer(bytearray(json.dumps(config).encode()), dtype=torch.uint8)


def find_tensors(checkpoint: Checkpoint, layer: str, kind: str) -> dict[str, str]:
    """Canonical tensor name -> full name in the file, for what a layer of that format has.

    Raises:
        CheckpointError: a tensor is there in both spellings.
    """
    found = {}
    for canonical, suffixes in SUFFIXES[kind].items():
        names = [f"{layer}.{suffix}" for suffix in suffixes if f"{layer}.{suffix}" in checkpoint]
        if len(names) > 1:
            raise CheckpointError(f"{checkpoint.name}: {' and '.join(names)} are the same tensor, stored twice.")
        if names:
            found[canonical] = names[0]
    return found
