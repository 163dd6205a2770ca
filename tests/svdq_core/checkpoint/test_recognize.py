"""Which family a file is of, and what is said about files without SVDQuant layers."""

import pytest
import torch
from checkpoint_files import write_tensors

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError

INT8, HALF = torch.zeros(128, 64, dtype=torch.int8), torch.zeros(128, 128, dtype=torch.bfloat16)

OTHERS = {
    "sealed": ({"quantfunc.payload": INT8}, "a sealed QuantFunc file"),
    "plain BF16": ({"double_blocks.0.img_attn.qkv.weight": HALF}, "It is a 16-bit FLUX.1 model"),
    "fp8": (
        {"img_in.weight": HALF.to(torch.float8_e4m3fn)},
        "has no SVDQuant layers (F8_E4M3). If it is a diffusion model",
    ),
    "4-bit T5": (
        {"encoder.block.0.layer.0.SelfAttention.q.qweight": INT8.view(torch.int16), "shared.weight": HALF},
        "this is a 4-bit text encoder (T5)",
    ),
    "no tensors": ({}, "holds no tensors"),
    "Qwen-Image": (
        {"transformer_blocks.0.attn.to_qkv.qweight": INT8, "transformer_blocks.0.img_mod.1.qweight": INT8},
        "The file is incomplete or not a Qwen-Image file",
    ),
    "Z-Image": ({"layers.0.feed_forward.net.0.proj.qweight": INT8}, "or not a Z-Image file"),
    "Z-Image with refiners": ({"noise_refiner.0.attention.to_qkv.qweight": INT8}, "or not a Z-Image file"),
    "SDXL": (
        {"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_qkv.qweight": INT8},
        "or not a SDXL file",
    ),
    "SANA": ({"transformer_blocks.0.ff.inverted_conv.qweight": INT8}, "SANA recognised, not supported yet"),
    "FLUX.2": (
        {"single_transformer_blocks.0.attn.to_qkv_mlp_proj.qweight": INT8},
        "or not a FLUX.2 file",
    ),
    "Chroma": (
        {"transformer_blocks.0.qkv_proj.qweight": INT8, "distilled_guidance_layer.in_proj.weight": HALF},
        "or not a Chroma file",
    ),
    "something else": ({"blocks.7.linear.qweight": INT8}, "unknown model (first: blocks.7.linear.qweight)"),
}

# names by which ComfyUI itself tells these
NAMED = {
    "Stable Audio": ["transformer.rotary_pos_emb.inv_freq"],
    "HunyuanDiT": ["mlp_t5.0.weight"],
    "Hunyuan3D": ["latent_in.weight"],
    "ACE-Step": ["genre_embedder.weight"],
    "SeedVR2": ["blocks.35.mlp.all.proj_in_gate.weight"],
    "HiDream-O1": ["t_embedder1.mlp.0.weight", "x_embedder.proj1.weight"],
    "PixelDiT or PiD": ["core.pixel_embedder.proj.weight"],
    "Z-Image in pixels": ["dec_net.cond_embed.weight", "cap_pad_token"],
    "TripoSplat": ["cam_out_layer.weight", "repo_layers.0.final_map.weight"],
    "Cosmos 1": ["blocks.block0.blocks.0.block.attn.to_q.0.weight"],
    "Stable Cascade": ["clf.1.weight"],
    "Mochi": ["t5_y_embedder.to_kv.weight"],
    "Chroma Radiance": ["nerf_image_embedder.embedder.0.weight", "distilled_guidance_layer.in_proj.weight"],
}


@pytest.mark.parametrize("title", NAMED)
def test_families_that_are_not_read_are_named(title, tmp_path):
    tensors = {"blocks.0.linear.qweight": INT8.clone()} | {name: HALF.clone() for name in NAMED[title]}
    with pytest.raises(CheckpointError, match=f"{title} recognised, not supported yet"):
        read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", tensors)))


@pytest.mark.parametrize(
    "tensors",
    [{"quantfunc.payload": INT8}, {"payload": INT8.view(torch.uint8)}],
    ids=["by its tensors", "by its metadata"],
)
def test_a_sealed_file_says_what_to_take_instead(tensors, tmp_path):
    metadata = {"format": "QuantFunc 2026-09", "model": "krea2-turbo"}
    path = write_tensors(tmp_path / "x.safetensors", {n: t.clone() for n, t in tensors.items()}, metadata)
    with pytest.raises(
        CheckpointError, match=r"a sealed QuantFunc file.*Take the same model in nunchaku's layout, as svdq-"
    ):
        read_checkpoint(Checkpoint(path))


@pytest.mark.parametrize(("tensors", "message"), OTHERS.values(), ids=OTHERS)
def test_other_models_are_named(tensors, message, tmp_path):
    path = write_tensors(tmp_path / "svdq-int4-flux.1-dev.safetensors", {n: t.clone() for n, t in tensors.items()})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(Checkpoint(path))
    assert str(caught.value).startswith("svdq-int4-flux.1-dev.safetensors: ")
    assert message in str(caught.value)
