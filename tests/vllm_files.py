"""Files of vLLM-Omni, made of nunchaku's as its two converters make them: rows and columns in plain order.

The inverse of each tile order is computed from the packer's own places, not by the pack.
"""

import json
from pathlib import Path

import torch
from checkpoint_files import write_tensors
from family_files import FamilyFile, minimax_h3
from fused_files import zimage
from nunchaku_packer import natural_order
from torch import Tensor

CONFIG = {"quant_method": "svdquant", "rank": 16, "precision": "nvfp4", "act_unsigned": False}
_ROW_DIM = {"qweight": 0, "wscales": 1, "proj_up": 0, "wcscales": 0, "bias": 0}


def converted(tensors: dict[str, Tensor], swapped: str, natural_vectors: bool) -> dict[str, Tensor]:
    """Plain order; row halves exchanged where a layer's name ends so; outer scales of one where there are none.

    Args:
        natural_vectors: the second version, which puts smoothing, channel scales and biases into plain order, too.
    """
    layers = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    found = {name: t for name, t in tensors.items() if name.rpartition(".")[0] not in layers}
    for layer in layers:
        stored = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.rpartition(".")[0] == layer}
        stored.pop("smooth_factor_orig", None)
        rows, half = stored["qweight"].shape[0], stored["qweight"].shape[0] // 2
        stored.setdefault("wcscales", torch.ones(rows).bfloat16())
        stored.setdefault("wtscale", torch.ones(1).bfloat16())
        kept = ("wtscale",) if natural_vectors else ("wtscale", "smooth_factor", "wcscales", "bias")
        plain = {n: t if n in kept else natural_order(n, t) for n, t in stored.items()}
        plain["qweight"] = plain["qweight"].view(torch.uint8)
        if layer.endswith(swapped):
            for name, dim in _ROW_DIM.items():
                if name in plain:
                    raw = plain[name].view(torch.uint8) if plain[name].element_size() == 1 else plain[name]
                    moved = torch.cat([raw.narrow(dim, half, half), raw.narrow(dim, 0, half)], dim)
                    plain[name] = moved.view(plain[name].dtype)
        found |= {f"{layer}.{n}": t for n, t in plain.items()}
    return found


def write_folder(folder: Path, tensors: dict[str, Tensor], config: dict | None, conversion: dict | None) -> Path:
    inner = folder / "transformer"
    metadata = {} if conversion is None else {"conversion": json.dumps(conversion)}
    write_tensors(inner / "diffusion_pytorch_model.safetensors", tensors, metadata)
    (inner / "config.json").write_text(json.dumps({"quantization_config": config} if config else {}))
    return folder


def h3_folder(folder: Path, config: dict | None = CONFIG, conversion: dict | None = None) -> tuple[FamilyFile, Path]:
    """The second version: layers called as in ComfyUI, everything else from the 16-bit model."""
    file = minimax_h3("nvfp4", host_named=True)
    rest = {n: t for n, t in file.base.items() if n.rpartition(".")[0] not in file.weights}
    tensors = converted(file.tensors | rest, ".mlp.fc1", True)
    return file, write_folder(folder / "h3", tensors, config, conversion)


def zimage_tensors(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first version: w13 is [w1; w3], and vectors stay as they were."""
    tensors = converted(packed, ".feed_forward.net.0.proj", False)
    names = {".feed_forward.net.0.proj.": ".feed_forward.w13.", ".feed_forward.net.2.": ".feed_forward.w2."}
    for old, new in names.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def zimage_folder(folder: Path) -> tuple[FamilyFile, Path]:
    file = zimage("nvfp4")
    config = {"model": None, "default": CONFIG}
    return file, write_folder(folder / "z", zimage_tensors(file.tensors), config, {"layout": "row_major"})


__all__ = ["CONFIG", "converted", "h3_folder", "write_folder", "zimage_folder", "zimage_tensors"]
