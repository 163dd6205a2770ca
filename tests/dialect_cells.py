"""Families x ways of storing a model: a file of each pair that is read, made by code that is not the pack's.

The table in docs/compatibility.md is made of this list: python tests/dialect_cells.py prints it. A new family has a
maker in FUSED and a list of its modules in family_modules.py.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tools")]

from checkpoint_files import write_tensors
from comfy_files import ComfyFile
from compressor_files import complete_h3
from family_files import FamilyFile, W, chroma, ernie, flux2, minimax_h3, qwen_image, sdxl
from family_modules import MODULES, WIDTH, empty_file, lite
from fused_files import flux, krea2, pixart, zimage
from modelopt_files import modelopt
from nunchaku_packer import NEWER
from vllm_files import h3_folder, zimage_folder

import svdquant_pack  # noqa: F401  (a package of this folder's name cannot be imported otherwise)
from svdquant_pack.svdq_core.models import FAMILIES

PRECISION = {"sdxl": "int4", "krea2": "int4"}  # what files exist of; others are made in nvfp4
FUSED: dict[str, Callable[[str], FamilyFile]] = {
    "flux": lambda precision: flux(precision, 32),
    "pixart": lambda precision: pixart(precision, 80),
    "zimage": lambda precision: zimage(precision, 48),
    "krea2": lambda precision: krea2(precision, 112),
    "qwen_image": qwen_image,
    "minimax_h3": minimax_h3,
    "flux2": flux2,
    "chroma": lambda precision: chroma(precision, tonera=True),
    "sdxl": sdxl,
    "ernie": ernie,
}


@dataclass(frozen=True)
class Cell:
    """A file or folder, a second file where it needs one, and what it stands for."""

    path: Path
    file: FamilyFile
    base: Path | None = None
    close: float = 1e-6  # of the largest weight


@cache
def _fused(family: str) -> FamilyFile:
    return FUSED[family](PRECISION.get(family, "nvfp4"))


def _written(folder: Path, file: FamilyFile, tensors: dict[str, torch.Tensor], metadata=None) -> Cell:
    path = write_tensors(folder / "model.safetensors", tensors, metadata)
    base = write_tensors(folder / "base.safetensors", file.base) if file.base else None
    return Cell(path, file, base)


def _spelled(file: FamilyFile, newer: bool) -> dict[str, torch.Tensor]:
    """The tensors with one spelling of suffixes or the other."""
    pairs = {new: old for old, new in NEWER.items()} if not newer else NEWER
    found = {}
    for name, tensor in file.tensors.items():
        layer, _, end = name.rpartition(".")
        quantized = f"{layer}.qweight" in file.tensors
        found[f"{layer}.{pairs.get(end, end)}" if quantized else name] = tensor
    return found


def newer_names(family: str, folder: Path) -> Cell:
    return _written(folder, _fused(family), _spelled(_fused(family), newer=True))


def older_names(family: str, folder: Path) -> Cell:
    return _written(folder, _fused(family), _spelled(_fused(family), newer=False))


def two_files(family: str, folder: Path) -> Cell:
    """Blocks in one file, the rest in the other, as older releases wrote them."""
    file = _fused(family)
    tensors = _spelled(file, newer=False)
    blocks = {n: t for n, t in tensors.items() if any(n.startswith(b.source + ".") for b in file.family.blocks)}
    rest = {n: t for n, t in tensors.items() if n not in blocks} or {"unused": torch.zeros(1)}
    write_tensors(folder / "two" / "transformer_blocks.safetensors", blocks)
    write_tensors(folder / "two" / "unquantized_layers.safetensors", rest)
    (folder / "two" / "config.json").write_text("{}")
    base = write_tensors(folder / "base.safetensors", file.base) if file.base else None
    return Cell(folder / "two", file, base)


def compressor(family: str, folder: Path) -> Cell:
    """diffuse-compressor under nunchaku's names: no smooth_factor_orig, and its own account of every layer."""
    file = complete_h3("nvfp4") if family == "minimax_h3" else _fused(family)
    tensors = {n: t for n, t in _spelled(file, newer=True).items() if not n.endswith("_orig")}
    layers = [n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")]
    targets = [{"export_name": layer, "runtime_tensor_layout": "nunchaku_packed"} for layer in layers]
    said = {"method": "svdquant", "rank": file.packer.rank, "targets": targets}
    return _written(folder, file, tensors, {"quantization_config": json.dumps(said)})


def nunchaku_lite(family: str, folder: Path) -> Cell:
    """A folder of diffusers with its config, another rank, and float16 beside the layers."""
    precision = PRECISION.get(family, "nvfp4")
    file = lite(family, precision, rank=48, bias_dtype=torch.float16)
    inner = folder / "pipeline" / "transformer"
    write_tensors(inner / "diffusion_pytorch_model.safetensors", file.tensors)
    layers = [n.removesuffix(".qweight") for n in file.tensors if n.endswith(".qweight")]
    config = {"quant_method": "nunchaku_lite", "svdq_w4a4": {"targets": layers, "rank": 48, "precision": precision}}
    (inner / "config.json").write_text(json.dumps({"quantization_config": config}))
    return Cell(folder / "pipeline", file)


def comfy_native(family: str, folder: Path) -> Cell:
    """ComfyUI's names, each layer with its JSON."""
    file, made = empty_file(family, "int4"), ComfyFile("empty", rank=48, spelling="comfy-kitchen")
    for module in MODULES[family]:
        made.add_svdquant(module.host, sum(module.rows) * W, module.columns * W, unsigned=False)
        truth = {name: tensor.double() for name, tensor in made.truth[module.host].items()}
        residual = truth["q"] * truth["scales"].T.repeat_interleave(64, dim=1) / truth["smooth"]
        bias = truth["bias"].numpy() if module.bias else None
        file.host(module.host, (residual + truth["up"] @ truth["down"].T).numpy(), bias)
        if bias is None:
            del made.tensors[f"{module.host}.bias"]
    file.rest()
    made.tensors |= file.plain
    return Cell(made.write(folder / "model.safetensors", in_metadata=True), file)


def model_opt(family: str, folder: Path) -> Cell:
    """The branch is rounded again with the smoothing in it."""
    cell = _written(folder, file := modelopt(family), file.tensors)
    return replace(cell, close=4e-3)


def vllm_omni(family: str, folder: Path) -> Cell:
    """Both versions of its converter: Z-Image's and MiniMax H3's."""
    file, path = {"zimage": zimage_folder, "minimax_h3": h3_folder}[family](folder)
    return Cell(path, file)


@dataclass(frozen=True)
class Column:
    """A way of storing models: its title, and how a file of a family is made; of all families where none is named."""

    title: str
    make: Callable[[str, Path], Cell]
    families: tuple[str, ...] = ()


ALL = tuple(family.name for family in FAMILIES)
COLUMNS = (
    Column("nunchaku", newer_names),
    Column("older names", older_names),
    Column("two files", two_files),
    Column("diffuse-compressor", compressor),
    Column("Nunchaku Lite", nunchaku_lite),
    Column("comfy-native", comfy_native),
    Column("ModelOpt", model_opt),
    Column("vLLM-Omni", vllm_omni, ("zimage", "minimax_h3")),
)
CELLS = {(family, column.title): column.make for column in COLUMNS for family in column.families or ALL}
WRITTEN = ("nunchaku", "comfy", "svdquant", "bf16")


def table() -> str:
    """The table of the docs."""
    titles = [column.title for column in COLUMNS]
    lines = ["| | " + " | ".join(titles) + " | written |", "|---" * (len(titles) + 2) + "|"]
    for family in FAMILIES:
        cells = ["read" if (family.name, title) in CELLS else "-" for title in titles]
        lines.append(f"| {family.title} | " + " | ".join(cells) + f" | {', '.join(WRITTEN)} |")
    return "\n".join(lines) + "\n"


__all__ = ["ALL", "CELLS", "FUSED", "WIDTH", "WRITTEN", "Cell", "table"]

if __name__ == "__main__":
    sys.stdout.write(table())
