"""Why a file does nothing: a key of it, and what that would have had to be."""

import comfy.lora
import pytest

from svdquant_pack.nodes.host.lora.lora_file import apply_lora_file
from svdquant_pack.nodes.host.lora.lora_report import refuse_nothing
from svdquant_pack.svdq_core.errors import LoraError


@pytest.fixture(scope="module")
def targets(model):
    return comfy.lora.model_lora_keys_unet(model.model, {})


def sentence(keys, targets, family: str = "FLUX.1") -> str:
    return str(refuse_nothing("x.safetensors", keys, family, targets, {}))


def test_a_name_that_is_almost_right(targets):
    keys = [f"transformer.block.0.attention.to_q.{end}" for end in ("alpha", "lora_A.weight", "lora_B.weight")]
    text = sentence(keys, targets)
    assert "transformer.block.0.attention.to_q.alpha would have to be" in text
    assert any(f"would have to be {name}.alpha" in text for name in targets if "attn" in name or "to_q" in name)


def test_keys_that_end_in_nothing_that_a_lora_has(targets):
    text = sentence(["transformer.transformer_blocks.0.attn.to_q.delta"] * 2, targets)
    assert "to_q.delta ends in nothing that a LoRA has, such as .lora_A.weight" in text


def test_half_of_a_pair(targets):
    text = sentence(["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], targets)
    assert "its other half is missing" in text


def test_a_whole_model_in_the_folder_of_loras(model, path, host):
    """Also a quantized one, whose own low-rank branch is called as LoRAs are."""
    from host_models import put_dense

    folder = host.model_folder("diffusion_models")
    for file in (path, folder / put_dense(folder)):
        with pytest.raises(LoraError, match=r"this is a whole model .*models/diffusion_models"):
            apply_lora_file(model, str(file), 1.0)


FOREIGN = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": "Stable Diffusion or SDXL",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": "Stable Diffusion or SDXL",
    "lora_unet_joint_blocks_0_x_block_attn_qkv": "Stable Diffusion 3",
    "transformer_blocks.0.img_mod.1": "Qwen-Image",
    "lora_unet_transformer_blocks_17_img_mlp_net_0_proj": "Qwen-Image",
    "diffusion_model.layers.3.attention.qkv": "Z-Image or Lumina 2",
    "lora_unet_layers_3_attention_to_q": "Z-Image or Lumina 2",
    "diffusion_model.layers.29.feed_forward.w1": "Z-Image or Lumina 2",
    "transformer.noise_refiner.0.attention.to_k": "Z-Image or Lumina 2",
    "diffusion_model.layers.3.self_attention.to_q": "Ernie Image",
    "diffusion_model.blocks.5.attn.wq": "Krea 2",
    "lora_unet_blocks_5_attn_wq": "Krea 2",
    "transformer.transformer_blocks.5.attn.to_gate": "Krea 2",
    "diffusion_model.txtfusion.refiner_blocks.0.attn.wo": "Krea 2",
    "diffusion_model.blocks.5.attn.qkv_proj": "MiniMax H3",
    "diffusion_model.blocks.5.adaln_proj.linear": "MiniMax H3",
    "transformer.adaln_single.linear": "PixArt",
    "diffusion_model.blocks.3.cross_attn.k_img": "Wan",
    "lora_unet_blocks_3_ffn_0": "Wan",
    "diffusion_model.distilled_guidance_layer.in_proj": "Chroma",
    "diffusion_model.double_stream_modulation_img.lin": "FLUX.2",
}


@pytest.mark.parametrize("module", FOREIGN)
def test_a_lora_of_another_family_is_named(module, targets):
    assert f"it looks like a LoRA for {FOREIGN[module]}." in sentence([f"{module}.lora_A.weight"], targets)


def test_a_lora_of_the_same_family_is_not_taken_for_a_foreign_one(targets):
    keys = ["double_blocks.0.img_attn.strange.lora_A.weight", "single_transformer_blocks.0.other.lora_A.weight"]
    assert "looks like" not in sentence(keys, targets)
    others = {"diffusion_model.layers.0.attention.qkv": "diffusion_model.layers.0.attention.qkv.weight"}
    assert "fits this Z-Image model; it looks like a LoRA for FLUX." in sentence(keys, others, "Z-Image")


def test_long_names_are_cut(targets):
    assert len(sentence(["a" * 20_000 + ".lora_A.weight"], targets)) < 1000
