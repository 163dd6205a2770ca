"""Every family module by module, as diffusers has it: what each Linear of ComfyUI's model is made of.

Written down by hand from the classes of diffusers and ComfyUI, so that files of any writer who quantizes module by
module can be made without the pack's own tables. Those give names and shapes of what is not quantized only.
"""

from dataclasses import dataclass

import numpy as np
import torch
from family_files import FamilyFile, W
from nunchaku_packer import Packed, Packer

from svdquant_pack.svdq_core.models import ARCHITECTURES, Architecture


@dataclass(frozen=True)
class Module:
    """One Linear of ComfyUI's model.

    Args:
        host: its name, with the block. modules: diffusers' names with the block, rows stacked.
        rows, columns: of each module, in widths. bias: whether it has one.
        swapped: row halves stand in the other order.
    """

    host: str
    modules: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int = 1
    bias: bool = True
    swapped: bool = False


def _stack(host: str, block: str, names: str, rows: int = 1, columns: int = 1, *, bias: bool = True, **more) -> Module:
    """`names` are separated by spaces, each of equal rows."""
    modules = tuple(f"{block}.{name}" for name in names.split())
    return Module(host, modules, (rows,) * len(modules), columns, bias, **more)


def _double(ff: tuple[str, str], up: int, down: int, bias: bool) -> list[Module]:
    """A double block of FLUX.1, FLUX.2 and Chroma."""
    found, source = [], "transformer_blocks.0"
    streams = {"img": ("attn.to_q attn.to_k attn.to_v", "attn.to_out.0", "ff")}
    streams["txt"] = ("attn.add_q_proj attn.add_k_proj attn.add_v_proj", "attn.to_add_out", "ff_context")
    for stream, (qkv, out, mlp) in streams.items():
        host = f"double_blocks.0.{stream}"
        found.append(_stack(f"{host}_attn.qkv", source, qkv, bias=bias))
        found.append(_stack(f"{host}_attn.proj", source, out, bias=bias))
        found.append(_stack(f"{host}_mlp.0", source, f"{mlp}.{ff[0]}", up, bias=bias))
        found.append(_stack(f"{host}_mlp.2", source, f"{mlp}.{ff[1]}", 1, down, bias=bias))
    return found


_SINGLE = "single_transformer_blocks.0"
_FLUX = [
    *_double(("net.0.proj", "net.2"), 4, 4, True),
    Module(
        "single_blocks.0.linear1",
        tuple(f"{_SINGLE}.{n}" for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
        (1, 1, 1, 4),
    ),
    _stack("single_blocks.0.linear2", _SINGLE, "proj_out", 1, 5),
]
_FLUX2 = [
    *_double(("linear_in", "linear_out"), 6, 3, False),
    _stack("single_blocks.0.linear1", _SINGLE, "attn.to_qkv_mlp_proj", 9, bias=False),
    _stack("single_blocks.0.linear2", _SINGLE, "attn.to_out", 1, 4, bias=False),
]
_PIXART = [
    _stack(f"blocks.0.{host}", "transformer_blocks.0", *rest)
    for host, *rest in (
        ("attn.qkv", "attn1.to_q attn1.to_k attn1.to_v"),
        ("attn.proj", "attn1.to_out.0"),
        ("cross_attn.q_linear", "attn2.to_q"),
        ("cross_attn.proj", "attn2.to_out.0"),
        ("mlp.fc1", "ff.net.0.proj", 4),
        ("mlp.fc2", "ff.net.2", 1, 4),
    )
]
_ZIMAGE = [
    _stack(f"{block}.0.{host}", f"{block}.0", names, rows, columns, bias=False)
    for block in ("layers", "noise_refiner", "context_refiner")
    for host, names, rows, columns in (
        ("attention.qkv", "attention.to_q attention.to_k attention.to_v", 1, 1),
        ("attention.out", "attention.to_out.0", 1, 1),
        ("feed_forward.w1", "feed_forward.w1", 2, 1),
        ("feed_forward.w2", "feed_forward.w2", 1, 2),
        ("feed_forward.w3", "feed_forward.w3", 2, 1),
    )
]
_KREA2 = [
    _stack(f"blocks.0.{host}", "transformer_blocks.0", name, rows, columns, bias=False)
    for host, name, rows, columns in (
        ("attn.wq", "attn.to_q", 2, 2),
        ("attn.wk", "attn.to_k", 1, 2),
        ("attn.wv", "attn.to_v", 1, 2),
        ("attn.gate", "attn.to_gate", 2, 2),
        ("attn.wo", "attn.to_out.0", 2, 2),
        ("mlp.gate", "ff.gate", 3, 2),
        ("mlp.up", "ff.up", 3, 2),
        ("mlp.down", "ff.down", 2, 3),
    )
]
_QWEN = [
    _stack(f"transformer_blocks.0.{name}", "transformer_blocks.0", name, rows, columns)
    for name, rows, columns in (
        *((f"attn.to_{n}", 1, 1) for n in ("q", "k", "v", "out.0", "add_out")),
        *((f"attn.add_{n}_proj", 1, 1) for n in "qkv"),
        *((f"{s}_mlp.net.0.proj", 4, 1) for s in ("img", "txt")),
        *((f"{s}_mlp.net.2", 1, 4) for s in ("img", "txt")),
    )
]
_H3 = [
    _stack(f"{ours}.0.{host}", f"{theirs}.0", names, rows, columns, bias=False, swapped=host == "mlp.fc1")
    for ours, theirs in (("blocks", "transformer_blocks"), ("token_refiner.blocks", "token_refiner.refiner_blocks"))
    for host, names, rows, columns in (
        ("attn.qkv_proj", "attn.to_q attn.to_k attn.to_v", 2, 1),
        ("attn.out_proj", "attn.to_out.0", 1, 2),
        ("mlp.fc1", "ff.net.0.proj", 6, 1),
        ("mlp.fc2", "ff.net.2", 1, 3),
    )
]
# one attention of eleven: the others stay in 16 bits, as in a file of which a recipe left out most
_SDXL_HOST, _SDXL_SOURCE = "middle_block.1.transformer_blocks.0", "mid_block.attentions.0.transformer_blocks.0"
_SDXL = [
    _stack(f"{_SDXL_HOST}.{name}", _SDXL_SOURCE, name, rows, columns, bias=bias)
    for name, rows, columns, bias in (
        ("attn1.to_q", 1, 1, False),
        ("attn1.to_k", 1, 1, False),
        ("attn1.to_v", 1, 1, False),
        ("attn1.to_out.0", 1, 1, True),
        ("attn2.to_q", 1, 1, False),
        ("attn2.to_out.0", 1, 1, True),
        ("ff.net.0.proj", 8, 1, True),
        ("ff.net.2", 1, 4, True),
    )
]
_ERNIE = [
    _stack(f"layers.0.{name}", "layers.0", name, rows, columns, bias=False)
    for name, rows, columns in (
        *((f"self_attention.to_{n}", 1, 1) for n in ("q", "k", "v", "out.0")),
        ("mlp.gate_proj", 3, 1),
        ("mlp.up_proj", 3, 1),
        ("mlp.linear_fc2", 1, 3),
    )
]
MODULES = {
    "flux": _FLUX,
    "pixart": _PIXART,
    "zimage": _ZIMAGE,
    "krea2": _KREA2,
    "qwen_image": _QWEN,
    "minimax_h3": _H3,
    "flux2": _FLUX2,
    "chroma": _FLUX,
    "sdxl": _SDXL,
    "ernie": _ERNIE,
}
WIDTH = {"krea2": 2}  # in tiles of 128: k and v are half as wide
# as diffusers calls norms that nunchaku moved
_RENAMED = {f".{n}.weight": f".attn.{n}.weight" for n in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")}


def _below_attention(source: str) -> str:
    return next((source.removesuffix(old) + new for old, new in _RENAMED.items() if source.endswith(old)), source)


class ModuleFile(FamilyFile):
    """A file whose layers are modules, and everything else of the model."""

    def put(self, module: Module, packed: list[Packed]) -> None:
        """Note the truth of one Linear; `packed` are its modules."""
        weight = np.concatenate([one.weight for one in packed])
        bias = np.concatenate([one.bias for one in packed]) if module.bias else None
        if module.swapped:
            weight = np.concatenate(np.split(weight, 2)[::-1])
        self.host(module.host, weight, bias)

    def rest(self, dtype: torch.dtype = torch.bfloat16, below_attention: bool = True) -> None:
        """Random tensors for everything that no module is, under diffusers' names.

        Args:
            below_attention: norms of FLUX.1's blocks lie below attn, as in diffusers.
        """
        family, width = self.family, WIDTH.get(self.family.name, 1) * W
        there = {"x_pad_token", "cap_pad_token"}  # which no Z-Image lacks
        draw = torch.Generator().manual_seed(3)
        shapes = {
            host: (source,)
            for host, source in family.plain_tensors().items()
            if host in there or not family.is_optional(host)
        }
        for block in family.blocks:
            for host in block.plain:
                names = tuple(f"{block.plain_prefix}.0.{s}" for s in block.plain_map(host).sources)
                shapes[f"{block.host}.0.{host}"] = names
            for linear in block.linears:
                whole = f"{block.host}.0.{linear.host}"
                if whole in self.weights:
                    continue
                for end in ("weight", "bias") if linear.bias else ("weight",):
                    modules = block.alternatives(linear)[0]
                    shapes[f"{whole}.{end}"] = tuple(f"{block.source}.0.{module}.{end}" for module in modules)
        for host, sources in shapes.items():
            names = sources
            if below_attention and family.name in ("flux", "chroma"):
                names = tuple(_below_attention(source) for source in sources)
            self._draw(host, names, self._shape(host, width), draw, dtype)

    def _shape(self, host: str, width: int) -> tuple[int, ...]:
        module, _, end = host.rpartition(".")
        found = self.family.shape_of(f"{module}.weight" if end == "bias" else host, width)
        flat = "norm" in host or not host.endswith((".weight", ".bias"))
        unknown = (width,) if flat else (width, width)
        shape = unknown if found is None else tuple(16 if n is None else n for n in found)
        return shape[:1] if end == "bias" else shape

    def _draw(self, host, sources, shape, draw, dtype) -> None:
        place = self.family.find_block(host)
        rows = place.block.plain_map(place.rest).rows if place and place.rest in place.block.plain else 0
        linear = self.family.find_linear(host.rpartition(".")[0])
        height = shape[0] // len(sources)
        pieces = [torch.randn(height, *shape[1:], generator=draw).to(dtype) for _ in sources]
        whole = torch.cat(pieces)
        swapped = host.rpartition(".")[0] in self.family.swapped_halves or (linear is not None and linear.swapped)
        self.plain[host] = torch.cat(whole.chunk(2)[::-1]) if swapped else whole
        for source, piece in zip(sources, pieces, strict=True):
            self.tensors[source] = piece.unflatten(0, (rows, -1)) if rows else piece


def empty_file(family: str, precision: str, rank: int = 16) -> ModuleFile:
    return ModuleFile(architecture(family), Packer(precision, rank))


def architecture(family: str) -> Architecture:
    return ARCHITECTURES[family]


def lite(family: str, precision: str, rank: int = 48, bias_dtype: torch.dtype = torch.bfloat16) -> ModuleFile:
    """diffusers' Nunchaku Lite: modules in tiles, with another rank than published files have."""
    file, width = empty_file(family, precision, rank), W
    for module in MODULES[family]:
        packed = [
            file.add(name, file.packer.layer(rows * width, module.columns * width, bias=module.bias))
            for name, rows in zip(module.modules, module.rows, strict=True)
        ]
        file.put(module, packed)
    if family == "qwen_image":  # modulation in plain order, without the 1
        for stream in ("img", "txt"):
            name = f"transformer_blocks.0.{stream}_mod.1"
            packed = file.add(name, file.packer.modulation(6 * W, W, 1))
            file.host(name, packed.weight, packed.bias)
    file.rest(bias_dtype)
    file.tensors = {name: tensor for name, tensor in file.tensors.items() if not name.endswith("_orig")}
    return file
