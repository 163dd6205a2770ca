"""deepcompressor's own output for the tiny models, as torch.save writes it.

The FLUX folder is put together from the tiny nunchaku file and the few tensors that cannot be derived from it;
sha256.json says what the folder held from which the real converter made that file, and every tensor must equal it.
"""

import json
from pathlib import Path

import torch
from checkpoint_files import DATA, TINY, fingerprint, pixart_plain_shapes, read_tensors
from torch import Tensor

from svdquant_pack.kernels.packing import unpack_int4, unpack_uint4
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint

FLUX_FOLDER = DATA / "native_deepcompressor_int4"
PIXART_FOLDER = DATA / "native_deepcompressor_pixart_int4"
WRAPPED = ("ff.net.2", "ff_context.net.2", "proj_out.linears.1")  # shifted activations
SHIFT = 0.171875


def flux_folder() -> dict[str, dict]:
    """File stem -> content of model.pt, scale.pt, smooth.pt, branch.pt of the tiny INT4 FLUX."""
    kept, _ = read_tensors(FLUX_FOLDER / "underived.safetensors")
    packed, _ = read_tensors(TINY["int4"])
    model = read_checkpoint(Checkpoint(TINY["int4"]))
    files: dict[str, dict] = {"model": {}, "scale": {}, "smooth": {"proj.fuse_when_possible": False}, "branch": {}}
    for block in model.architecture.blocks:
        prefix = f"{block.source}.0."
        for linear in block.linears:
            layer = model.layers[f"{block.host}.0.{linear.host}"]
            for source, part in zip(linear.sources, layer.parts, strict=True):
                _add_layer(files, prefix, block.native[source], part)
        for source in (s for sources in block.plain.values() for s in sources):
            files["model"][f"{prefix}attn.{source}"] = packed[f"{prefix}{source}"]
    for name in packed:
        if "blocks." not in name:
            files["model"][name] = packed[name]
    for name, tensor in kept.items():
        file, _, key = name.partition(".pt/")
        if file == "branch":
            files[file][key.removesuffix("/a.weight")]["a.weight"] = tensor
        else:
            files[file][key] = tensor
    _check(files)
    return files


def _add_layer(files: dict[str, dict], prefix: str, native, part) -> None:
    awq = part.scheme == "awq"
    units = unpack_uint4(part["qweight"]).float() - 7 if awq else unpack_int4(part["qweight"]).float()
    scales = part["wscales"].T
    weight = (units.view(*scales.shape, -1) * scales.float()[..., None]).view(units.shape).to(scales.dtype)
    modules = [prefix + name + (".linear" if name in WRAPPED else "") for name in native.modules]
    height = weight.shape[0] // len(modules)
    for index, module in enumerate(modules):
        rows = slice(index * height, (index + 1) * height)
        files["model"][f"{module}.weight"] = weight[rows]
        files["scale"][f"{module}.weight.scale.0"] = scales[rows, None, :, None]
        files["scale"][f"{module}.weight.zero"] = torch.tensor(0.0)
    if awq:
        return
    if native.modules[0] in WRAPPED:
        files["model"][f"{prefix}{native.modules[0]}.shift"] = torch.tensor([SHIFT], dtype=weight.dtype)
    key = prefix + native.smooth if native.smooth else modules[0]
    files["smooth"][key] = part["smooth_factor_orig"]
    files["branch"][prefix + native.branch if native.branch else modules[0]] = {"b.weight": part["proj_up"]}


def _check(files: dict[str, dict]) -> None:
    expected = {n: tuple(v) for n, v in json.loads((FLUX_FOLDER / "sha256.json").read_text()).items()}
    found = {n: fingerprint(t) for n, t in flat(files).items()}
    assert found == {name: (dtype, tuple(shape), digest) for name, (dtype, shape, digest) in expected.items()}


def flat(files: dict[str, dict]) -> dict[str, Tensor]:
    """All tensors as FILE.pt/NAME or FILE.pt/NAME/INNER."""
    found = {}
    for file, content in files.items():
        for name, value in content.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            for end, tensor in inner:
                if isinstance(tensor, Tensor):
                    found[f"{file}.pt/{name}" + (f"/{end}" if end else "")] = tensor
    return found


def pixart_folder() -> dict[str, dict]:
    """The one-block PixArt folder of tests/data, with the tensors that write_pixart puts around that block."""
    files = {
        stem: torch.load(PIXART_FOLDER / f"{stem}.pt", weights_only=True)
        for stem in ("model", "scale", "smooth", "branch")
    }
    draw = torch.Generator().manual_seed(7)
    for name, shape in pixart_plain_shapes().items():
        files["model"][name] = (0.1 * torch.randn(*shape, generator=draw)).half()
    return files


def write_native(folder: Path, files: dict[str, dict]) -> Path:
    """Save the files of a folder as deepcompressor does; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in files.items():
        torch.save({n: v.clone() if isinstance(v, Tensor) else v for n, v in content.items()}, folder / f"{stem}.pt")
    return folder
