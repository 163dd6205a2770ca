"""Files as diffuse-compressor exports them, packed by nunchaku_packer.py: no smooth_factor_orig, some names of its own.

What is not quantized keeps diffusers' names, written down here as diffusers' conversion script has them.
"""

import numpy as np
import torch
from family_files import FamilyFile, W, flux2
from nunchaku_packer import Packed, Packer

from svdquant_pack.svdq_core.models import KREA2, MINIMAX_H3

INNER, MLP, TIME = 2 * W, 3 * W, 64

# diffusers' name -> ComfyUI's, shape
H3_PLAIN = {
    "proj_in.weight": ("video_patch_proj.weight", (W, 96)),
    "proj_in.bias": ("video_patch_proj.bias", (W,)),
    "audio_proj_in.weight": ("audio_patch_proj.weight", (W, 32)),
    "audio_proj_in.bias": ("audio_patch_proj.bias", (W,)),
    "context_embedder.weight": ("condition_proj.weight", (W, 48)),
    "context_embedder.bias": ("condition_proj.bias", (W,)),
    "time_embedder.linear_1.weight": ("time_embedder.proj_in.weight", (W, 16)),
    "time_embedder.linear_1.bias": ("time_embedder.proj_in.bias", (W,)),
    "time_embedder.linear_2.weight": ("time_embedder.proj_out.weight", (TIME, W)),
    "time_embedder.linear_2.bias": ("time_embedder.proj_out.bias", (TIME,)),
    "token_refiner.final_norm.weight": ("token_refiner.final_norm.weight", (W,)),
    "norm_out.norm.weight": ("final_layer.norm.weight", (W,)),
    "norm_out.linear.weight": ("final_layer.adaln_proj.linear.weight", (2 * W, TIME)),
    "norm_out.linear.bias": ("final_layer.adaln_proj.linear.bias", (2 * W,)),
    "proj_out.weight": ("final_layer.video_out.weight", (96, W)),
    "proj_out.bias": ("final_layer.video_out.bias", (96,)),
    "audio_proj_out.weight": ("final_layer.audio_out.weight", (32, W)),
    "audio_proj_out.bias": ("final_layer.audio_out.bias", (32,)),
}
H3_NORMS = {"norm1": "norm1", "norm2": "norm2", "attn.norm_q": "attn.q_norm", "attn.norm_k": "attn.k_norm"}
H3_STACKS = {"token_refiner.refiner_blocks": "token_refiner.blocks", "transformer_blocks": "blocks"}


def without_originals(file: FamilyFile) -> FamilyFile:
    file.tensors = {name: tensor for name, tensor in file.tensors.items() if not name.endswith("_orig")}
    return file


def complete_h3(precision: str, lite: bool = False, adaln: str = "awq") -> FamilyFile:
    """A whole MiniMax H3 in one file.

    Args:
        lite: under diffusers' names altogether, q, k and v apart; else quantized layers have ComfyUI's.
        adaln: "awq" or "plain".
    """
    file = FamilyFile(MINIMAX_H3 if lite else MINIMAX_H3.variants[0], Packer(precision))
    draw = torch.Generator().manual_seed(4)

    def plain(theirs: str, ours: str, shape: tuple[int, ...]) -> None:
        file.tensors[theirs] = file.plain[ours] = torch.randn(*shape, generator=draw).bfloat16()

    for name, (ours, shape) in H3_PLAIN.items():
        plain(name, ours, shape)
    for theirs, ours in H3_STACKS.items():
        source = f"{theirs if lite else ours}.0"
        fused, qkv = f"{ours}.0.attn.qkv_proj", f"{source}.attn"
        if lite:
            found = [file.add(f"{qkv}.to_{n}", file.packer.layer(INNER, W, bias=False)) for n in "qkv"]
            file.host(fused, np.concatenate([packed.weight for packed in found]), None)
        else:
            file.whole(fused, f"{qkv}.qkv_proj", 3 * INNER, bias=False)
        out, fc1, fc2 = (
            ("attn.to_out.0", "ff.net.0.proj", "ff.net.2") if lite else ("attn.out_proj", "mlp.fc1", "mlp.fc2")
        )
        file.whole(f"{ours}.0.attn.out_proj", f"{source}.{out}", W, INNER, bias=False)
        packed = file.add(f"{source}.{fc1}", file.packer.layer(2 * MLP, W, bias=False))
        file.host(f"{ours}.0.mlp.fc1", np.concatenate([packed.weight[MLP:], packed.weight[:MLP]]), None)
        file.whole(f"{ours}.0.mlp.fc2", f"{source}.{fc2}", W, MLP, bias=False)
        for name, renamed in H3_NORMS.items():
            plain(f"{theirs}.0.{name}.weight", f"{ours}.0.{renamed}.weight", (W,))
    if adaln == "awq":
        packed = file.packer.modulation(18 * W, TIME, 1)
        file.add("transformer_blocks.0.adaln_proj.linear" if lite else "blocks.0.adaln_proj.linear", packed)
        file.host("blocks.0.adaln_proj.linear", packed.weight, packed.bias)
    else:
        for end, shape in (("weight", (18 * W, TIME)), ("bias", (18 * W,))):
            plain(f"transformer_blocks.0.adaln_proj.linear.{end}", f"blocks.0.adaln_proj.linear.{end}", shape)
    file.plain["rope.inv_freq"] = 1.0 / 10000.0 ** (torch.arange(0, 32, 2, dtype=torch.float32) / 32)
    return without_originals(file)


def klein(precision: str) -> FamilyFile:
    """FLUX.2 under nunchaku's names of its fused layers."""
    return without_originals(flux2(precision))


def scanned_krea2(precision: str) -> FamilyFile:
    """Every Linear that the tool finds: q, k, v and gate apart, and those of the text fusion, too."""
    file = FamilyFile(KREA2, Packer(precision))
    names = {"wq": "attn.to_q", "wk": "attn.to_k", "wv": "attn.to_v", "gate": "attn.to_gate", "wo": "attn.to_out.0"}
    stacks = {f"txtfusion.{kind}.0": f"text_fusion.{kind}.0" for kind in ("layerwise_blocks", "refiner_blocks")}
    for host, source in ({"blocks.0": "transformer_blocks.0"} | stacks).items():
        for ours, theirs in names.items():
            file.whole(f"{host}.attn.{ours}", f"{source}.{theirs}", W, bias=False)
        file.whole(f"{host}.mlp.gate", f"{source}.ff.gate", 2 * W, bias=False)
        file.whole(f"{host}.mlp.up", f"{source}.ff.up", 2 * W, bias=False)
        file.whole(f"{host}.mlp.down", f"{source}.ff.down", W, 2 * W, bias=False)
        found = {"attn.norm_q": "attn.qknorm.qnorm", "attn.norm_k": "attn.qknorm.knorm"}
        found |= {"norm1": "prenorm", "norm2": "postnorm"}
        for theirs, ours in found.items():
            tensor = file.plain[f"{host}.{ours}.scale"] = torch.randn(W).bfloat16()
            file.tensors[f"{source}.{theirs}.weight"] = tensor
    table = file.tensors["transformer_blocks.0.scale_shift_table"] = torch.randn(6, W).bfloat16()
    file.plain["blocks.0.mod.lin"] = table.flatten()
    sizes = {"first": (W, 64), "tmlp.0": (W, 32), "tmlp.2": (W, W), "tproj.1": (6 * W, W), "last.linear": (64, W)}
    sizes |= {"txtmlp.1": (W, W), "txtmlp.3": (W, W), "txtfusion.projector": (1, 4)}
    for host, source in KREA2.plain_tensors().items():
        module, _, end = host.rpartition(".")
        shape = sizes.get(module, (2, W) if "modulation" in host else (W,))
        file.tensors[source] = file.plain[host] = torch.randn(*(shape[:1] if end == "bias" else shape)).bfloat16()
    return without_originals(file)


__all__ = ["Packed", "complete_h3", "klein", "scanned_krea2", "without_originals"]
