"""Apply LoRA: every spelling of a LoRA file gives the picture of the full-precision model, and reports what it did."""

import re

import pytest
import torch
from host_models import put_tiny
from lora_files import (
    SPELLINGS,
    adapter_file,
    control_lora,
    diffusers_lora,
    host_lora,
    xlabs_lora,
)
from safetensors.torch import load_file, save_file
from sampling import relative_error, rounding, sample_flux
from tiny_files import DATA

from svdquant_pack.svdq_core.errors import LoraError

# float32 on the CPU, the same weights, sums in another order
ORDER = rounding(2e-6)


@pytest.fixture(scope="module")
def model(host):
    name = put_tiny(host.model_folder("diffusion_models"))
    return host.call("SVDQuantModelLoader", model_name=name, compute="w4a16")[0]


@pytest.fixture(scope="module")
def plain(model):
    return sample_flux(model)


def put(host, lora: dict, name: str = "spelled.safetensors") -> str:
    save_file({key: t.contiguous() for key, t in lora.items()}, host.model_folder("loras") / name)
    return name


def apply(host, model, lora: dict, strength: float = 0.8):
    return host.call("SVDQuantLoraLoader", model=model, lora_name=put(host, lora), strength=strength)


def stock(host, model, lora: dict, strength: float = 0.8):
    (patched,) = host.call(
        "LoraLoaderModelOnly", model=model, lora_name=put(host, lora, "stock.safetensors"), strength_model=strength
    )
    return patched


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling(host, model, dense, plain, spelling):
    file, same = (make(5) for make in SPELLINGS[spelling])
    expected = sample_flux(stock(host, dense, same))
    assert relative_error(expected, plain) > 0.2
    patched, report = apply(host, model, file)
    assert "ignored" not in report and re.search(r" (8|10) layers matched", report)
    assert relative_error(sample_flux(patched), expected) < ORDER
    # a model in full precision takes the same spellings
    assert relative_error(sample_flux(apply(host, dense, file)[0]), expected) < ORDER


@pytest.mark.parametrize("spelling", ["diffusers", "ComfyUI", "kohya", "OneTrainer", "old diffusers"])
def test_the_stock_loader_reads_what_the_host_knows(host, model, dense, spelling):
    file, same = (make(5) for make in SPELLINGS[spelling])
    expected = sample_flux(stock(host, dense, same))
    assert relative_error(sample_flux(stock(host, model, file)), expected) < ORDER


def test_xlabs(host, model, dense):
    file, same = xlabs_lora(5)
    patched, report = apply(host, model, file)
    assert "4 layers matched" in report and "ignored" not in report
    assert relative_error(sample_flux(patched), sample_flux(stock(host, dense, same))) < ORDER


def test_a_file_converted_for_nunchaku(host, model, dense, plain):
    """It holds the LoRA of lora_diffusers_r4, merged with the base branch, written by nunchaku's own converter."""
    expected = sample_flux(stock(host, dense, load_file(DATA / "lora_diffusers_r4.safetensors"), 4.0))
    assert relative_error(expected, plain) > 0.2
    file = load_file(DATA / "lora_int4_nunchaku_converted.safetensors")
    patched, report = apply(host, model, file, 4.0)
    assert "ignored" not in report
    # the converter keeps factors in bfloat16, as the original file; but it folds alpha and pads
    assert relative_error(sample_flux(patched), expected) < ORDER
    # a model that is not quantized takes it as well: the base branch is known by its rank
    assert relative_error(sample_flux(apply(host, dense, file, 4.0)[0]), expected) < ORDER


def test_a_converted_file_with_norms(host, model, dense):
    """The norms of q and k in such a file are new values."""
    scale = torch.rand(128) + 0.5
    file = load_file(DATA / "lora_int4_nunchaku_converted.safetensors")
    file["transformer_blocks.0.norm_q.weight"] = scale
    same = load_file(DATA / "lora_diffusers_r4.safetensors")
    same["diffusion_model.double_blocks.0.img_attn.norm.query_norm.set_weight"] = scale
    ours = sample_flux(apply(host, model, file, 0.5)[0])
    assert relative_error(ours, sample_flux(stock(host, dense, same, 0.5))) < ORDER


@pytest.mark.parametrize("alpha", [True, False])
def test_flux_tools_widen_the_image_input(host, model, dense, alpha):
    """A control LoRA doubles the channels of img_in; the model then wants the control image beside the latent."""
    lora = control_lora(5)
    ours, report = apply(host, model, lora, 0.5)
    expected = stock(host, dense, lora, 0.5)
    assert "ignored" not in report
    picture = sample_flux(ours)
    # biases of 4-bit layers are bfloat16 in the file, and stay so
    assert relative_error(picture, sample_flux(expected)) < rounding(5e-4)
    assert relative_error(picture, sample_flux(model)) > 0.2
    diffusers = {f"transformer.x_embedder.{k.removeprefix('img_in.')}": t for k, t in lora.items() if "img_in" in k}
    if alpha:
        diffusers["transformer.x_embedder.alpha"] = torch.tensor(4.0)
    same = {f"diffusion_model.{k}".replace(".lora_B.bias", ".diff_b"): t for k, t in lora.items() if "img_in" in k}
    same["diffusion_model.img_in.reshape_weight"] = torch.tensor([256, 128])
    ours = sample_flux(apply(host, model, diffusers, 0.5)[0])
    assert relative_error(ours, sample_flux(stock(host, dense, same, 0.5))) < ORDER


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_dtypes(host, model, dense, dtype):
    lora = {key: t if key.endswith("alpha") else t.to(dtype) for key, t in diffusers_lora(5).items()}
    expected = sample_flux(stock(host, dense, lora))
    assert relative_error(sample_flux(apply(host, model, lora)[0]), expected) < ORDER


def test_ours_equals_the_stock_loader_bit_for_bit(host, model):
    lora = diffusers_lora(5)
    assert torch.equal(sample_flux(apply(host, model, lora)[0]), sample_flux(stock(host, model, lora)))


def test_loaders_of_both_kinds_in_any_order(host, model, dense):
    one, other = diffusers_lora(5), host_lora(6)
    expected = sample_flux(stock(host, stock(host, dense, one), other, -0.3))
    mixed = stock(host, apply(host, model, one)[0], other, -0.3)
    swapped = apply(host, stock(host, model, other, -0.3), one)[0]
    for patched in (mixed, swapped):
        assert relative_error(sample_flux(patched), expected) < ORDER


def test_strength_zero_is_the_model_without(host, model, plain):
    for lora in (diffusers_lora(5), adapter_file("new weight")):
        patched, report = apply(host, model, lora, 0.0)
        assert re.search(r"at strength 0: (8|10) layers matched", report)
        assert not patched.patches
        assert torch.equal(sample_flux(patched), plain)


def test_the_same_file_with_both_signs_is_none(host, model, plain):
    lora = diffusers_lora(5)
    both = apply(host, apply(host, model, lora, 0.6)[0], lora, -0.6)[0]
    both = stock(host, stock(host, both, lora, 1.5), lora, -1.5)
    assert torch.equal(sample_flux(both), plain)


def test_the_report_says_what_was_ignored_and_why(host, model):
    lora = diffusers_lora(5)
    lora["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.zeros(4, 4)
    lora["transformer.transformer_blocks.77.attn.to_q.lora_A.weight"] = torch.zeros(4, 256)
    lora["transformer.transformer_blocks.0.attn.to_k.lora_A.weight"] = torch.zeros(4, 256)  # without its other half
    lora["transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector"] = torch.zeros(256)
    lora["transformer.transformer_blocks.0.attn.to_q.strange"] = torch.zeros(256)
    _, report = apply(host, model, lora)
    head, *reasons = report.splitlines()
    assert head.startswith("spelled.safetensors at strength 0.8:")
    for word, key in (
        ("text encoder", "lora_te1"),
        ("no such layer", "blocks.77"),
        ("magnitudes", "magnitude_vector"),
        ("no such layer", "strange"),
    ):
        assert any(word in line and key in line for line in reasons), (word, report)


# What does not work is one sentence, and the model stays as it was.


def test_an_sdxl_lora(host, model, plain):
    names = (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    )
    lora = {f"{n}.lora_{end}.weight": torch.zeros(4, 4) for n in names for end in ("up", "down")}
    with pytest.raises(LoraError, match=r"spelled\.safetensors: none of its 4 keys fits this FLUX\.1 model; .*SDXL"):
        apply(host, model, lora)
    assert torch.equal(sample_flux(model), plain)


def test_a_lora_for_the_text_encoder_alone(host, model):
    lora = {
        f"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{end}.weight": torch.zeros(4, 4) for end in ("up", "down")
    }
    with pytest.raises(LoraError, match="text encoder; use LoraLoader"):
        apply(host, model, lora)


def test_a_lora_of_a_larger_flux(host, model):
    lora = {}
    for end, shape in (("A", (4, 3072)), ("B", (3072, 4))):
        lora[f"transformer.transformer_blocks.0.attn.to_out.0.lora_{end}.weight"] = torch.zeros(shape)
    with pytest.raises(
        LoraError, match=r"spelled\.safetensors: double_blocks\.0\.img_attn\.proj.*3072 inputs.*256 inputs"
    ):
        apply(host, model, lora)


@pytest.mark.parametrize("content", [b"", b"no safetensors file", b"\x00" * 200])
def test_a_damaged_file(host, model, content):
    (host.model_folder("loras") / "damaged.safetensors").write_bytes(content)
    with pytest.raises(LoraError, match=r"damaged\.safetensors: (not a readable LoRA|the) file.*download it again"):
        host.call("SVDQuantLoraLoader", model=model, lora_name="damaged.safetensors", strength=1.0)


def test_a_file_without_tensors(host, model):
    with pytest.raises(LoraError, match="the file is empty"):
        apply(host, model, {})


def test_a_replaced_file_is_read_again(host, model):
    first = sample_flux(apply(host, model, diffusers_lora(5))[0])
    second = sample_flux(apply(host, model, diffusers_lora(6))[0])
    assert relative_error(second, first) > 0.1


@pytest.mark.parametrize(("absent", "kept"), [("mlp_fc2", slice(0, 256)), ("out_proj", slice(256, 1280))])
def test_a_converted_file_with_half_a_layer(host, model, dense, absent, kept):
    """linear2 has two sources there; a LoRA on one of them alone acts on its own columns."""
    file = load_file(DATA / "lora_int4_nunchaku_converted.safetensors")
    file = {key: t for key, t in file.items() if f"single_transformer_blocks.0.{absent}." not in key}
    same = load_file(DATA / "lora_diffusers_r4.safetensors")
    down = same["transformer.single_transformer_blocks.0.proj_out.lora_A.weight"]
    half = torch.zeros_like(down)
    half[:, kept] = down[:, kept]
    same["transformer.single_transformer_blocks.0.proj_out.lora_A.weight"] = half
    expected = sample_flux(stock(host, dense, same, 4.0))
    assert relative_error(sample_flux(apply(host, model, file, 4.0)[0]), expected) < ORDER
