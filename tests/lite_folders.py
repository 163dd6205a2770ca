"""The tiny model as diffusers' Nunchaku Lite stores it: each of its modules on its own, in a folder with a config."""

import json
from pathlib import Path

import torch
from checkpoint_files import TINY, read_tensors, write_tensors
from torch import Tensor

from svdquant_pack.svdq_core import layouts
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.layer import Part
from svdquant_pack.svdq_core.modulation_codes import codes_to_nunchaku
from svdquant_pack.svdq_core.stack import slice_rows

DOUBLE, SINGLE = "transformer_blocks.0.", "single_transformer_blocks.0."
# host Linear -> (part of it, diffusers modules that share its rows)
MODULES = {
    "double_blocks.0.img_attn.qkv": [(0, [f"{DOUBLE}attn.to_{x}" for x in "qkv"])],
    "double_blocks.0.txt_attn.qkv": [(0, [f"{DOUBLE}attn.add_{x}_proj" for x in "qkv"])],
    "double_blocks.0.img_attn.proj": [(0, [f"{DOUBLE}attn.to_out.0"])],
    "double_blocks.0.txt_attn.proj": [(0, [f"{DOUBLE}attn.to_add_out"])],
    "double_blocks.0.img_mlp.0": [(0, [f"{DOUBLE}ff.net.0.proj"])],
    "double_blocks.0.img_mlp.2": [(0, [f"{DOUBLE}ff.net.2"])],
    "double_blocks.0.txt_mlp.0": [(0, [f"{DOUBLE}ff_context.net.0.proj"])],
    "double_blocks.0.txt_mlp.2": [(0, [f"{DOUBLE}ff_context.net.2"])],
    "double_blocks.0.img_mod.lin": [(0, [f"{DOUBLE}norm1.linear"])],
    "double_blocks.0.txt_mod.lin": [(0, [f"{DOUBLE}norm1_context.linear"])],
    "single_blocks.0.modulation.lin": [(0, [f"{SINGLE}norm.linear"])],
    "single_blocks.0.linear1": [(0, [f"{SINGLE}attn.to_{x}" for x in "qkv"]), (1, [f"{SINGLE}proj_mlp"])],
}
PROJ_OUT = f"{SINGLE}proj_out"  # one module for what nunchaku keeps as two


def lite_tensors(precision: str = "int4") -> dict[str, Tensor]:
    """All tensors; the summed layer of the single block in random codes, everything else that of the tiny file."""
    packed, _ = read_tensors(TINY[precision])
    model = read_checkpoint(Checkpoint(TINY[precision]))
    found = {name: tensor for name, tensor in packed.items() if "blocks." not in name}
    for block in model.architecture.blocks:
        for source in (s for sources in block.plain.values() for s in sources):
            found[f"{block.source}.0.attn.{source}"] = packed[f"{block.source}.0.{source}"]
    for host, pieces in MODULES.items():
        layer = model.layers[host]
        for index, modules in pieces:
            part = layer.parts[index]
            height = part.out_features // len(modules)
            for number, module in enumerate(modules):
                piece = slice_rows(part, number * height, (number + 1) * height)
                bias = layer.bias[part.rows[0] + number * height :][:height].bfloat16()
                found |= {f"{module}.{name}": tensor for name, tensor in stored(piece, bias).items()}
    found |= {f"{PROJ_OUT}.{name}": tensor for name, tensor in random_layer(256, 1280, precision).items()}
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


# host Linear of a PixArt -> diffusers modules that share its rows
PIXART_MODULES = {
    "attn.qkv": [f"attn1.to_{x}" for x in "qkv"],
    "attn.proj": ["attn1.to_out.0"],
    "cross_attn.q_linear": ["attn2.to_q"],
    "cross_attn.proj": ["attn2.to_out.0"],
    "mlp.fc1": ["ff.net.0.proj"],
    "mlp.fc2": ["ff.net.2"],
}


def lite_pixart_tensors(packed: Path) -> dict[str, Tensor]:
    """The model of a nunchaku PixArt file of one block."""
    tensors, model = read_tensors(packed)[0], read_checkpoint(Checkpoint(packed))
    found = {n: t for n, t in tensors.items() if f"{n.rpartition('.')[0]}.qweight" not in tensors}
    for host, modules in PIXART_MODULES.items():
        layer = model.layers[f"blocks.0.{host}"]
        (part,) = layer.parts
        height = part.out_features // len(modules)
        for number, module in enumerate(modules):
            start = number * height
            piece, bias = slice_rows(part, start, start + height), layer.bias[start : start + height]
            found |= {f"{DOUBLE}{module}.{name}": tensor for name, tensor in stored(piece, bias).items()}
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def stored(part: Part, bias: Tensor) -> dict[str, Tensor]:
    """One module's tensors in the file's order."""
    tensors = {n: t for n, t in part.tensors.items() if n != "smooth_factor_orig"}
    if part.scheme == "awq":
        qweight = codes_to_nunchaku(tensors["qweight"])
        return {"qweight": qweight, "wscales": tensors["wscales"], "wzeros": tensors["wzeros"], "bias": bias}
    if part.scheme == "nvfp4":  # this format always has both scales
        tensors.setdefault("wtscale", torch.ones(1, dtype=bias.dtype))
        tensors.setdefault("wcscales", torch.ones(part.out_features, dtype=bias.dtype))
    return {name: layouts.NUNCHAKU[name].to_stored(tensor) for name, tensor in (tensors | {"bias": bias}).items()}


def random_layer(rows: int, columns: int, precision: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(5)
    qweight = torch.randint(0, 256, (rows, columns // 2), generator=draw, dtype=torch.uint8).view(torch.int8)
    small = {
        n: 0.1 * torch.randn(*s, generator=draw) for n, s in {"proj_down": (columns, 32), "proj_up": (rows, 32)}.items()
    }
    group = 64 if precision == "int4" else 16
    scales = 0.05 * torch.rand(columns // group, rows, generator=draw) + 0.01
    tensors = {name: tensor.bfloat16() for name, tensor in small.items()} | {
        "qweight": qweight,
        "wscales": scales.bfloat16() if precision == "int4" else scales.to(torch.float8_e4m3fn),
        "smooth_factor": (1 + torch.rand(columns, generator=draw)).bfloat16(),
    }
    part = Part(precision, (0, rows), (0, columns), False, tensors)
    return stored(part, torch.randn(rows, generator=draw).bfloat16())


def lite_config(tensors: dict[str, Tensor]) -> str:
    """The config.json that diffusers writes beside such a file, shortened."""
    integers = [name for name in tensors if name.endswith(".qweight")]
    kinds = {"svdq_w4a4": torch.int8, "awq_w4a16": torch.int32}
    targets = {
        kind: {"targets": [n.removesuffix(".qweight") for n in integers if tensors[n].dtype == dtype]}
        for kind, dtype in kinds.items()
    }
    quantization = {"quant_method": "nunchaku_lite", "compute_dtype": "bfloat16"} | targets
    if any("attn1." in name for name in tensors):
        kind = {"_class_name": "PixArtTransformer2DModel", "num_layers": 1}
    else:
        kind = {"_class_name": "FluxTransformer2DModel", "num_layers": 1, "num_single_layers": 1}
    return json.dumps(kind | {"quantization_config": quantization})


def write_lite(folder: Path, tensors: dict[str, Tensor], shards: int = 1) -> Path:
    """Write the folder, its tensors in one file or in several with an index; return it."""
    names = sorted(tensors)
    if shards == 1:
        write_tensors(folder / "diffusion_pytorch_model.safetensors", tensors)
    else:
        weight_map = {}
        for index in range(shards):
            file = f"diffusion_pytorch_model-{index + 1:05}-of-{shards:05}.safetensors"
            chosen = names[index::shards]
            write_tensors(folder / file, {name: tensors[name] for name in chosen})
            weight_map |= dict.fromkeys(chosen, file)
        index_file = folder / "diffusion_pytorch_model.safetensors.index.json"
        index_file.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(lite_config(tensors))
    return folder
