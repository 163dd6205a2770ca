"""What a quantized layer cannot take of a patch is refused by name, before anything is sampled with it."""

import logging

import comfy.hooks
import comfy.lora
import pytest
import torch
from comfy.weight_adapter import LoKrAdapter, LoRAAdapter
from lora_files import ADAPTERS, dora, loha, lokr
from sampling import sample_flux

from svdquant_pack.nodes.host.lora.misfit import misfit
from svdquant_pack.svdq_core.errors import LoraError, SVDQuantError

PROJ = "diffusion_model.double_blocks.0.img_attn.proj"


def test_wrong_shapes_are_refused_by_name(model, plain, add):
    lora = {f"{PROJ}.lora_A.weight": torch.zeros(4, 320), f"{PROJ}.lora_B.weight": torch.zeros(256, 4)}
    with pytest.raises(LoraError, match=r"double_blocks\.0\.img_attn\.proj.*256 outputs and 320 inputs.*256 inputs"):
        add(model, lora)
    lora = {f"{PROJ}.lora_A.weight": torch.zeros(4, 256), f"{PROJ}.lora_B.weight": torch.zeros(256, 8)}
    with pytest.raises(LoraError, match=r"img_attn\.proj.*has rank 8 .*rank 4"):
        add(model, lora)
    sizes = {"LoKr": (512, 256), "LoHa": (256, 512), "GLoRA": (256, 512), "OFT": (512, 256), "difference": (64, 256)}
    for kind, (outputs, inputs) in sizes.items():
        with pytest.raises(LoraError, match=r"img_attn\.proj.*another model"):
            add(model, ADAPTERS[kind](0, PROJ, outputs, inputs))
    assert torch.equal(sample_flux(model), plain)


def test_wrong_shapes_in_a_hook_are_refused_as_well(model):
    lora = {f"{PROJ}.lora_A.weight": torch.zeros(4, 320), f"{PROJ}.lora_B.weight": torch.zeros(256, 4)}
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    (hook,) = comfy.hooks.create_hook_lora(lora, 1.0, 0.0).hooks
    with pytest.raises(LoraError, match="another model"):
        model.clone().add_hook_patches(hook, comfy.lora.load_lora(lora, targets), 1.0)


def test_a_lora_that_would_widen_a_4_bit_layer_is_refused(model, add):
    lora = {f"{PROJ}.lora_A.weight": torch.zeros(4, 320), f"{PROJ}.lora_B.weight": torch.zeros(256, 4)}
    lora[f"{PROJ}.reshape_weight"] = torch.tensor([256, 320])
    with pytest.raises(LoraError, match="changes the shape"):
        add(model, lora)


def test_merging_into_us_is_refused(model, dense, plain):
    with pytest.raises(SVDQuantError, match="cannot be merged into an SVDQuant model"):
        model.clone().add_patches(dense.get_key_patches("diffusion_model."), 0.5, 0.5)
    assert torch.equal(sample_flux(model), plain)


def test_a_weight_wrapper_is_refused(model):
    key = next(iter(model.svdquant_layers()))
    with pytest.raises(SVDQuantError, match="packed in 4 bits"):
        model.clone().add_weight_wrapper(key, lambda weight: weight)


def test_a_difference_of_another_shape_is_refused(model, plain):
    """As of a node that works out W * (s - 1) from the layer as it is packed."""
    packed = torch.zeros(1000)
    for key, tensor in ((f"{PROJ}.weight", packed), (f"{PROJ}.bias", packed), (f"{PROJ}.weight", packed[None])):
        for value in ((tensor,), ("diff", (tensor,)), ("set", (tensor,)), ("model_as_lora", (tensor,))):
            with pytest.raises(LoraError, match=r"img_attn\.proj"):
                model.clone().add_patches({key: value}, 1.0)
    with pytest.raises(LoraError, match=r"shape \(1000,\), the tensor \(256, 256\).*packed"):
        model.clone().add_patches({f"{PROJ}.weight": (packed,)}, 1.0)
    assert torch.equal(sample_flux(model), plain)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(model, broken):
    tensor = torch.zeros(256, 256)
    tensor[3, 4] = broken
    with pytest.raises(LoraError, match=r"img_attn\.proj: the patch holds NaN"):
        model.clone().add_patches({f"{PROJ}.weight": (tensor,)}, 1.0)
    with pytest.raises(LoraError, match=r"img_attn\.proj: the strength is"):
        model.clone().add_patches({f"{PROJ}.weight": (torch.zeros(256, 256),)}, broken)


def test_an_offset_beyond_the_layer_is_refused(model):
    """The host's names for Lumina 2 put k and v behind the last row of a layer with fewer key heads."""
    target = f"{PROJ}.weight", (0, 200, 128)
    value = LoRAAdapter(set(), (torch.zeros(128, 4), torch.zeros(4, 256), None, None, None, None))
    with pytest.raises(LoraError, match=r"img_attn\.proj: ComfyUI puts .* rows 200 to 328, and the layer has 256"):
        model.clone().add_patches({target: value}, 1.0)


def adapter(kind, name: str = "x"):
    (value,) = comfy.lora.load_lora(kind(0, name, 256, 128), {name: "weight"}, log_missing=False).values()
    return value


def test_damaged_adapters_are_tried_with_the_hosts_own_arithmetic(caplog):
    """Nothing of the trial is logged."""
    up, down = torch.zeros(256, 4), torch.zeros(4, 128)
    cases = {
        "rank of a LoHa": (loha, 1, torch.zeros(5, 128)),
        "half of a LoKr": (lokr, 6, torch.zeros(7, 16)),
        "no half of a LoKr": (lokr, 6, None),
        "scales of a DoRA": (dora, 4, torch.zeros(7, 1)),
    }
    with caplog.at_level(logging.WARNING):
        for name, (kind, index, tensor) in cases.items():
            value = adapter(kind)
            assert misfit(value, None, (256, 128)) is None, name
            value.weights = tuple(tensor if i == index else t for i, t in enumerate(value.weights))
            assert misfit(value, None, (256, 128)), name
        middle = LoRAAdapter(set(), (up, down, None, torch.zeros(3, 3), None, None))
        assert misfit(middle, None, (256, 128))
        assert misfit(LoKrAdapter(set(), (None,) * 9), None, (256, 128))
    assert not caplog.records


@pytest.mark.parametrize("kind", [kind for kind in ADAPTERS if kind != "new weight"])
def test_sound_adapters_fit(kind):
    lora = ADAPTERS[kind](0, "x", 256, 128)
    for target, value in comfy.lora.load_lora(lora, {"x": "x.weight"}, log_missing=False).items():
        assert misfit(value, None, (256, 128) if target == "x.weight" else (256,)) is None


@pytest.mark.parametrize("patch", [(torch.ones(256, 256).to_sparse(),), (torch.ones(256, 256, device="meta"),), "text"])
def test_a_patch_that_holds_no_values_is_refused(model, patch):
    with pytest.raises(LoraError, match=r"img_attn\.proj: "):
        model.clone().add_patches({f"{PROJ}.weight": patch})


@pytest.mark.parametrize(("strengths", "named"), [((float("inf"), 1.0), "inf"), ((1.0, float("nan")), "nan")])
def test_the_strength_that_is_no_number_is_named(model, strengths, named):
    with pytest.raises(LoraError, match=f"the strength is {named}"):
        model.clone().add_patches({f"{PROJ}.weight": (torch.ones(256, 256),)}, *strengths)
