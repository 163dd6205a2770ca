"""nunchaku's own files of the families that family_files.py leaves to files of other tools: packed by hand, with truth.

Odd ranks, layers in 16 bits among quantized ones, two precisions in one file, no metadata.
"""

import numpy as np
import torch
from family_files import W
from family_modules import ModuleFile, architecture
from nunchaku_packer import Packer


def fused(family: str, precision: str, rank: int, newer: bool = True) -> ModuleFile:
    return ModuleFile(architecture(family), Packer(precision, rank), newer)


def zimage(precision: str, rank: int = 16, skip_refiners: bool = False) -> ModuleFile:
    """qkv fused on both sides; the first half of the MLP's rows is w3."""
    file = fused("zimage", precision, rank)
    for block in ("layers",) if skip_refiners else ("layers", "noise_refiner", "context_refiner"):
        name = f"{block}.0"
        file.whole(f"{name}.attention.qkv", f"{name}.attention.to_qkv", 3 * W, bias=False)
        file.whole(f"{name}.attention.out", f"{name}.attention.to_out.0", W, bias=False)
        hosts = [f"{name}.feed_forward.w3", f"{name}.feed_forward.w1"]
        file.split(hosts, f"{name}.feed_forward.net.0.proj", 4 * W, bias=False)
        file.whole(f"{name}.feed_forward.w2", f"{name}.feed_forward.net.2", W, 2 * W, bias=False)
    file.rest()
    return file


def krea2(precision: str, rank: int = 16) -> ModuleFile:
    """q and gate twice as wide as k and v; gate and up of the MLP share what belongs to their input."""
    file, k = fused("krea2", precision, rank), 2 * W
    source, host = "transformer_blocks.0", "blocks.0"
    packed = file.add(f"{source}.attn.to_qkv_gate", file.packer.layer(6 * W, k, bias=False))
    for name, start, stop in (("wq", 0, 2), ("wk", 2, 3), ("wv", 3, 4), ("gate", 4, 6)):
        file.host(f"{host}.attn.{name}", packed.weight[start * W : stop * W], None)
    file.whole(f"{host}.attn.wo", f"{source}.attn.to_out.0", 2 * W, k, bias=False)
    shared = file.packer.shared(k)
    for name in ("gate", "up"):
        file.whole(f"{host}.mlp.{name}", f"{source}.ff.{name}", 3 * W, k, bias=False, shared=shared)
    file.whole(f"{host}.mlp.down", f"{source}.ff.down", 2 * W, 3 * W, bias=False)
    file.rest()
    return file


def flux(precision: str, rank: int = 16, newer: bool = False) -> ModuleFile:
    """FLUX.1 with modulation interleaved and 1 added, and the second MLP layer in 16 bits."""
    file = fused("flux", precision, rank, newer)
    source = "transformer_blocks.0"
    for stream, suffix, norm in (("img", "", "norm1"), ("txt", "_context", "norm1_context")):
        host = f"double_blocks.0.{stream}"
        packed = file.add(f"{source}.{norm}.linear", file.packer.modulation(6 * W, W, 6))
        file.host(f"{host}_mod.lin", packed.weight, packed.bias)
        file.whole(f"{host}_attn.qkv", f"{source}.qkv_proj{suffix}", 3 * W)
        file.whole(f"{host}_attn.proj", f"{source}.out_proj{suffix}", W)
        file.whole(f"{host}_mlp.0", f"{source}.mlp{suffix}_fc1", 4 * W)
        if stream == "img":
            file.whole(f"{host}_mlp.2", f"{source}.mlp{suffix}_fc2", W, 4 * W, unsigned=True)
        else:
            for end, shape in (("weight", (W, 4 * W)), ("bias", (W,))):
                tensor = torch.full(shape, 0.25, dtype=torch.bfloat16)
                file.tensors[f"{source}.mlp{suffix}_fc2.{end}"] = file.plain[f"{host}_mlp.2.{end}"] = tensor
    single = "single_transformer_blocks.0"
    packed = file.add(f"{single}.norm.linear", file.packer.modulation(3 * W, W, 3))
    file.host("single_blocks.0.modulation.lin", packed.weight, packed.bias)
    found = [file.add(f"{single}.{n}", file.packer.layer(rows * W, W)) for n, rows in (("qkv_proj", 3), ("mlp_fc1", 4))]
    biases = [one.bias for one in found if one.bias is not None]
    file.host("single_blocks.0.linear1", np.concatenate([one.weight for one in found]), np.concatenate(biases))
    left, right = file.packer.layer(W, W), file.packer.layer(W, 4 * W, unsigned=True)
    left.tensors["bias"].zero_()
    file.add(f"{single}.out_proj", left), file.add(f"{single}.mlp_fc2", right)
    file.host("single_blocks.0.linear2", np.concatenate([left.weight, right.weight], axis=1), right.bias)
    known = dict(file.plain)
    file.rest(below_attention=False)
    for host, tensor in known.items():  # which rest() drew again under another name
        file.plain[host] = tensor
    file.tensors = {n: t for n, t in file.tensors.items() if "ff_context" not in n}
    return file


def pixart(precision: str, rank: int = 16) -> ModuleFile:
    """The names that this pack proposes, since nobody has published such a file."""
    file = fused("pixart", precision, rank)
    source, host = "transformer_blocks.0", "blocks.0"
    file.whole(f"{host}.attn.qkv", f"{source}.attn1.to_qkv", 3 * W)
    file.whole(f"{host}.attn.proj", f"{source}.attn1.to_out.0", W)
    file.whole(f"{host}.cross_attn.q_linear", f"{source}.attn2.to_q", W)
    file.whole(f"{host}.cross_attn.proj", f"{source}.attn2.to_out.0", W)
    file.whole(f"{host}.mlp.fc1", f"{source}.ff.net.0.proj", 4 * W)
    file.whole(f"{host}.mlp.fc2", f"{source}.ff.net.2", W, 4 * W, unsigned=True)
    file.rest()
    return file
