"""Why a file does nothing: a key of it, and what that would have had to be."""

import comfy.lora
import pytest

from svdquant_pack.nodes.host.lora.lora_file import apply_lora_file
from svdquant_pack.nodes.host.lora.lora_report import refuse_nothing
from svdquant_pack.svdq_core.errors import LoraError


@pytest.fixture(scope="module")
def targets(model):
    return comfy.lora.model_lora_keys_unet(model.model, {})


def sentence(keys, targets, family: str = "Flux") -> str:
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


def test_a_lora_of_the_same_family_is_not_taken_for_a_foreign_one(targets):
    keys = ["double_blocks.0.img_attn.strange.lora_A.weight", "single_transformer_blocks.0.other.lora_A.weight"]
    assert "looks like" not in sentence(keys, targets)
    assert "looks like a LoRA for FLUX" in sentence(keys, targets, "PixArt")
    assert "Qwen-Image" in sentence(["transformer_blocks.0.img_mod.1.lora_A.weight"], targets)


def test_long_names_are_cut(targets):
    assert len(sentence(["a" * 20_000 + ".lora_A.weight"], targets)) < 1000
