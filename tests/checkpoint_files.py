"""The test files of tests/data, whole and cut to size, and how to write variants of them."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_files import DATA
from torch import Tensor

TINY = {precision: DATA / f"flux_tiny_{precision}_r32.safetensors" for precision in ("int4", "nvfp4")}
PIXART_BLOCK = DATA / "pixart_block_int4_PROPOSED_v2names.safetensors"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file, its folder made if missing; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def write_legacy_folder(folder: Path) -> Path:
    """The two-file folder with the tensors of the tiny INT4 file, and its two config files."""
    tensors, _ = read_tensors(TINY["int4"])
    blocks = {n: t for n, t in tensors.items() if n.startswith(("transformer_blocks.", "single_transformer_blocks."))}
    write_tensors(folder / "transformer_blocks.safetensors", blocks)
    rest = {n: t for n, t in tensors.items() if n not in blocks}
    write_tensors(folder / "unquantized_layers.safetensors", rest)
    for name in ("config.json", "comfy_config.json"):
        (folder / name).write_text((DATA / "legacy_folder_int4" / name).read_text())
    return folder


def newer_names(precision: str) -> dict[str, str]:
    """Older tensor name -> newer tensor name, as nunchaku's own converter renamed the tiny file."""
    return dict(json.loads((DATA / f"flux_tiny_{precision}_v2_names.json").read_text()))


def write_pixart(path: Path) -> Path:
    """A complete PixArt file around the one block of PIXART_BLOCK, the rest seeded random."""
    tensors, metadata = read_tensors(PIXART_BLOCK)
    draw = torch.Generator().manual_seed(7)
    for name, shape in pixart_plain_shapes().items():
        tensors[name] = (0.1 * torch.randn(*shape, generator=draw)).half()
    return write_tensors(path, tensors, metadata)


def pixart_plain_shapes(hidden: int = 128) -> dict[str, tuple[int, ...]]:
    """Diffusers name -> shape of what lies outside the blocks of a PixArt-Sigma."""
    modules = {
        "pos_embed.proj": (hidden, 4, 2, 2),
        "adaln_single.linear": (6 * hidden, hidden),
        "adaln_single.emb.timestep_embedder.linear_1": (hidden, 256),
        "adaln_single.emb.timestep_embedder.linear_2": (hidden, hidden),
        "caption_projection.linear_1": (hidden, 64),
        "caption_projection.linear_2": (hidden, hidden),
        "proj_out": (32, hidden),
    }
    shapes = {f"{name}.weight": shape for name, shape in modules.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in modules.items()}
    return shapes | {"scale_shift_table": (2, hidden)}


def fingerprint(tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
    """(dtype, shape, sha256 of the bytes in row-major order): equal where two tensors are the same, bit for bit."""
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    data = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
    flat = data.contiguous().flatten().view(torch.uint8)
    return dtype, shape, hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def truth(precision: str) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Name -> fingerprint of what the generator of the tiny file started from."""
    raw = json.loads((DATA / f"flux_tiny_{precision}_truth_sha256.json").read_text())
    return {name: (dtype, tuple(shape), digest) for name, (dtype, shape, digest) in raw.items()}


def host_dense_samples() -> dict[str, tuple[Tensor, Tensor]]:
    """Host tensor name -> (indices into the flat tensor, their float32 values) of the tiny INT4 file."""
    tensors, _ = read_tensors(DATA / "flux_tiny_int4_host_dense_samples.safetensors")
    return {name: (tensors[f"{name}.index"].long(), t) for name, t in tensors.items() if not name.endswith(".index")}
