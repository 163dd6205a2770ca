"""A tiny nunchaku file of each family that no tool of others has packed for us: layers of nunchaku_packer.py.

What each Linear of ComfyUI's model must become is written down here by hand, as the sources describe it, and not taken
from the pack's tables; those give names and shapes of what is not quantized only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from nunchaku_packer import Packed, Packer
from torch import Tensor

from svdquant_pack.svdq_core.models import CHROMA, ERNIE, FLUX2, MINIMAX_H3, QWEN_IMAGE, SDXL, Architecture
from svdquant_pack.svdq_core.models.sdxl import DEPTHS

W = 128  # the width of all of them


@dataclass
class FamilyFile:
    """A file and its truth.

    Args:
        tensors: of the file. weights, biases: dense ones by host Linear. plain: other tensors by host name.
        base: of the second file, under ComfyUI's names.
    """

    family: Architecture
    packer: Packer
    newer: bool = True
    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    biases: dict[str, np.ndarray | None] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)

    def add(self, source: str, packed: Packed) -> Packed:
        self.tensors |= packed.named(source, self.newer)
        return packed

    def host(self, name: str, weight: np.ndarray, bias: np.ndarray | None) -> None:
        self.weights[name], self.biases[name] = weight, bias

    def whole(self, host: str, source: str, rows: int, columns: int = W, **options) -> None:
        packed = self.add(source, self.packer.layer(rows, columns, **options))
        self.host(host, packed.weight, packed.bias)

    def split(self, hosts: list[str], source: str, rows: int, columns: int = W, **options) -> None:
        packed = self.add(source, self.packer.layer(rows, columns, **options))
        height = rows // len(hosts)
        for index, host in enumerate(hosts):
            part = slice(index * height, (index + 1) * height)
            self.host(host, packed.weight[part], None if packed.bias is None else packed.bias[part])

    def fill(self, counts: dict[str, int], sizes: Callable[[str], tuple[int, ...]], into_base: bool = False) -> None:
        """Everything that is not quantized: random tensors under the names of the family's description."""
        draw = torch.Generator().manual_seed(1)
        pairs = dict(self.family.plain_tensors())
        for block in self.family.blocks:
            for index in range(counts.get(block.host, 0)):
                for host in block.plain:
                    (source,) = block.plain_map(host).sources
                    pairs[f"{block.host}.{index}.{host}"] = f"{block.source}.{index}.{source}"
        for host, source in pairs.items():
            if self.family.is_optional(host):
                continue
            shape = sizes(host.removesuffix("bias") + "weight")[:1] if host.endswith(".bias") else sizes(host)
            tensor = torch.randn(*shape, generator=draw).bfloat16()
            (self.base if into_base else self.tensors)[host if into_base else source] = tensor
            halves = host.rpartition(".")[0] in self.family.swapped_halves
            self.plain[host] = torch.cat(tensor.chunk(2)[::-1]) if halves and not into_base else tensor


def _stacked(file: FamilyFile, sources: list[str], rows: list[int], columns: int = W, **options) -> Packed:
    found = [file.add(s, file.packer.layer(n, columns, **options)) for s, n in zip(sources, rows, strict=True)]
    biases = [packed.bias for packed in found if packed.bias is not None]
    return Packed({}, np.concatenate([p.weight for p in found]), np.concatenate(biases) if biases else None)


def _summed(file: FamilyFile, sources: list[str], columns: list[int], unsigned: bool, bias: bool) -> Packed:
    left = file.packer.layer(W, columns[0], bias=bias)
    if bias:
        left.tensors["bias"].zero_()
    right = file.packer.layer(W, columns[1], unsigned=unsigned, bias=bias)
    for source, packed in zip(sources, (left, right), strict=True):
        file.add(source, packed)
    return Packed({}, np.concatenate([left.weight, right.weight], axis=1), right.bias)


def flux2(precision: str) -> FamilyFile:
    file = FamilyFile(FLUX2, Packer(precision))
    for host, qkv, out, mlp in (
        ("img", "to_qkv", "to_out.0", "ff"),
        ("txt", "to_added_qkv", "to_add_out", "ff_context"),
    ):
        block, source = f"double_blocks.0.{host}", "transformer_blocks.0"
        file.whole(f"{block}_attn.qkv", f"{source}.attn.{qkv}", 3 * W, bias=False)
        file.whole(f"{block}_attn.proj", f"{source}.attn.{out}", W, bias=False)
        file.whole(f"{block}_mlp.0", f"{source}.{mlp}.linear_in", 6 * W, bias=False)
        file.whole(f"{block}_mlp.2", f"{source}.{mlp}.linear_out", W, 3 * W, bias=False)
    single = "single_transformer_blocks.0.attn"
    joined = _stacked(file, [f"{single}.qkv_proj", f"{single}.mlp_fc1"], [3 * W, 6 * W], bias=False)
    file.host("single_blocks.0.linear1", joined.weight, None)
    joined = _summed(file, [f"{single}.out_proj", f"{single}.mlp_fc2"], [W, 3 * W], unsigned=False, bias=False)
    file.host("single_blocks.0.linear2", joined.weight, None)
    sizes = {"img_in": (W, 32), "txt_in": (W, 64), "time_in.in_layer": (W, 256), "time_in.out_layer": (W, W)}
    sizes |= {f"double_stream_modulation_{s}.lin": (6 * W, W) for s in ("img", "txt")}
    sizes |= {"single_stream_modulation.lin": (3 * W, W), "final_layer.adaLN_modulation.1": (2 * W, W)}
    sizes |= {"final_layer.linear": (32, W)}
    counts = {"double_blocks": 1, "single_blocks": 1}
    file.fill(counts, lambda host: sizes.get(host.removesuffix(".weight"), (W,)))
    return file


def chroma(precision: str, tonera: bool) -> FamilyFile:
    """spooknik's spelling, unsigned behind a GELU, or tonera's, signed."""
    family = CHROMA.variants[0] if tonera else CHROMA
    file = FamilyFile(family, Packer(precision), newer=False)
    for host, suffix in (("img", ""), ("txt", "_context")):
        block, source = f"double_blocks.0.{host}", "transformer_blocks.0"
        file.whole(f"{block}_attn.qkv", f"{source}.qkv_proj{suffix}", 3 * W)
        file.whole(f"{block}_attn.proj", f"{source}.out_proj{suffix}", W)
        file.whole(f"{block}_mlp.0", f"{source}.mlp{suffix}_fc1", 4 * W)
        file.whole(f"{block}_mlp.2", f"{source}.mlp{suffix}_fc2", W, 4 * W, unsigned=not tonera)
    single = "single_transformer_blocks.0"
    joined = _stacked(file, [f"{single}.qkv_proj", f"{single}.mlp_fc1"], [3 * W, 4 * W])
    file.host("single_blocks.0.linear1", joined.weight, joined.bias)
    joined = _summed(file, [f"{single}.out_proj", f"{single}.mlp_fc2"], [W, 4 * W], unsigned=not tonera, bias=True)
    file.host("single_blocks.0.linear2", joined.weight, joined.bias)
    sizes = {"img_in.weight": (W, 64), "txt_in.weight": (W, 32), "final_layer.linear.weight": (64, W)}
    sizes |= {"distilled_guidance_layer.in_proj.weight": (64, 16), "distilled_guidance_layer.out_proj.weight": (W, 64)}
    counts = {"double_blocks": 1, "single_blocks": 1}
    counts |= {"distilled_guidance_layer.layers": 1, "distilled_guidance_layer.norms": 1}
    file.fill(counts, lambda host: sizes.get(host, (W,)))
    return file


def sdxl(precision: str) -> FamilyFile:
    file = FamilyFile(SDXL, Packer(precision), newer=False)
    counts = {}
    for block in SDXL.blocks:
        # one transformer block each; the real counts would make the file large and test nothing more
        counts[block.host] = 1
        host, source = f"{block.host}.0", f"{block.source}.0"
        file.split([f"{host}.attn1.to_{n}" for n in "qkv"], f"{source}.attn1.to_qkv", 3 * W, bias=False)
        file.whole(f"{host}.attn1.to_out.0", f"{source}.attn1.to_out.0", W)
        file.whole(f"{host}.attn2.to_q", f"{source}.attn2.to_q", W, bias=False)
        file.whole(f"{host}.attn2.to_out.0", f"{source}.attn2.to_out.0", W)
        file.whole(f"{host}.ff.net.0.proj", f"{source}.ff.net.0.proj", 8 * W)
        file.whole(f"{host}.ff.net.2", f"{source}.ff.net.2", W, 4 * W)
    assert len(counts) == 2 + 2 + 1 + 3 + 3 and DEPTHS == (0, 2, 10)
    file.fill(counts, lambda host: (W, 8) if "attn2.to_" in host else (W,) if ".norm" in host else (4, 4))
    return file


def minimax_h3(precision: str, host_named: bool = False) -> FamilyFile:
    """The 300 linears of the published INT4 file, or the names of the published fp4 file; and the second file."""
    family = MINIMAX_H3.variants[0] if host_named else MINIMAX_H3
    file = FamilyFile(family, Packer(precision), newer=host_named)
    inner, mlp = 2 * W, 3 * W
    kinds = {"blocks": "transformer_blocks"} | ({"token_refiner.blocks": ""} if host_named else {})
    for kind, theirs in kinds.items():
        host, source = f"{kind}.0", f"{kind if host_named else theirs}.0"
        if host_named:
            file.whole(f"{host}.attn.qkv_proj", f"{source}.attn.qkv_proj", 3 * inner, bias=False)
            file.whole(f"{host}.attn.out_proj", f"{source}.attn.out_proj", W, inner, bias=False)
        else:
            shared = file.packer.shared(W)
            names = [f"{source}.attn.to_{n}" for n in "qkv"]
            found = _stacked(file, names, [inner] * 3, bias=False, shared=shared)
            file.host(f"{host}.attn.qkv_proj", found.weight, None)
            file.whole(f"{host}.attn.out_proj", f"{source}.attn.to_out.0", W, inner, bias=False)
        fc1, fc2 = ("mlp.fc1", "mlp.fc2") if host_named else ("ff.net.0.proj", "ff.net.2")
        packed = file.add(f"{source}.{fc1}", file.packer.layer(2 * mlp, W, bias=False))
        file.host(f"{host}.mlp.fc1", np.concatenate([packed.weight[mlp:], packed.weight[:mlp]]), None)
        file.whole(f"{host}.mlp.fc2", f"{source}.{fc2}", W, mlp, bias=False)
    counts = {"blocks": 1, "token_refiner.blocks": 1}
    file.fill(counts, lambda host: (W,) if "norm" in host or host.endswith("bias") else (W, 16), into_base=True)
    for name in ("blocks.0.adaln_proj.linear.weight", "blocks.0.adaln_proj.linear.bias"):
        file.base[name] = torch.full((18 * W, 16) if name.endswith("weight") else (18 * W,), 0.5, dtype=torch.float32)
    linears = {"attn.qkv_proj": (3 * inner, W), "attn.out_proj": (W, inner), "mlp.fc1": (2 * mlp, W)}
    for kind in ("blocks", "token_refiner.blocks"):
        for name, shape in (linears | {"mlp.fc2": (W, mlp)}).items():
            host = f"{kind}.0.{name}"
            own = file.weights.get(host)
            dense = torch.randn(*shape, generator=torch.Generator().manual_seed(3)) if own is None else None
            dense = torch.from_numpy(own).float() if dense is None else dense
            file.base[f"{host}.weight"] = (dense * 1.02).bfloat16()
    for name, tensor in file.base.items():
        if name.rpartition(".")[0] not in file.weights:
            file.plain[name] = tensor
    return file


def ernie(precision: str) -> FamilyFile:
    """Every Linear is a layer of its own, called as in ComfyUI."""
    file = FamilyFile(ERNIE, Packer(precision))
    for name in (*(f"self_attention.to_{n}" for n in "qkv"), "self_attention.to_out.0"):
        file.whole(f"layers.0.{name}", f"layers.0.{name}", W, bias=False)
    for name in ("gate_proj", "up_proj"):
        file.whole(f"layers.0.mlp.{name}", f"layers.0.mlp.{name}", 3 * W, bias=False)
    file.whole("layers.0.mlp.linear_fc2", "layers.0.mlp.linear_fc2", W, 3 * W, bias=False)
    sizes = {"x_embedder.proj.weight": (W, 8, 1, 1), "text_proj.weight": (W, 24), "final_linear.weight": (8, W)}
    sizes |= {"adaLN_modulation.1.weight": (6 * W, W), "final_norm.linear.weight": (2 * W, W)}
    file.fill({"layers": 1}, lambda host: sizes.get(host, (W, W) if "time_embedding" in host else (W,)))
    return file


def qwen_image(precision: str, modulation: str = "awq") -> FamilyFile:
    """Modulation as AWQ (nunchaku), as W4A4 in plain order ("svdq"), or in 16 bits ("plain")."""
    file = FamilyFile(QWEN_IMAGE, Packer(precision))
    block = "transformer_blocks.0"
    for name, source in (("to_{}", "to_qkv"), ("add_{}_proj", "add_qkv_proj")):
        hosts = [f"{block}.attn.{name.format(n)}" for n in "qkv"]
        file.split(hosts, f"{block}.attn.{source}", 3 * W)
    for name in ("attn.to_out.0", "attn.to_add_out"):
        file.whole(f"{block}.{name}", f"{block}.{name}", W)
    for stream in ("img", "txt"):
        name = f"{block}.{stream}_mlp.net"
        file.whole(f"{name}.0.proj", f"{name}.0.proj", 4 * W)
        file.whole(f"{name}.2", f"{name}.2", W, 4 * W, unsigned=True)
        name = f"{block}.{stream}_mod.1"
        if modulation == "svdq":
            file.whole(name, name, 6 * W)
        elif modulation == "awq":
            packed = file.add(name, file.packer.modulation(6 * W, W, 6))
            file.host(name, packed.weight, packed.bias)
        else:
            for end, shape in (("weight", (6 * W, W)), ("bias", (6 * W,))):
                file.tensors[f"{name}.{end}"] = file.plain[f"{name}.{end}"] = torch.ones(shape, dtype=torch.float16)
    sizes = {"img_in.weight": (W, 16), "txt_in.weight": (W, 24), "proj_out.weight": (16, W)}
    sizes |= {"norm_out.linear.weight": (2 * W, W)}
    file.fill({"transformer_blocks": 1}, lambda host: sizes.get(host, (W, 8) if "time_text" in host else (W,)))
    return file
