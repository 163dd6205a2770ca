"""Patches of the host: equal ones are known, what adds up is added, and what cannot be taken is refused by name."""

import comfy.hooks
import comfy.lora
import pytest
import torch
from lora_files import ADAPTERS, diffusers_lora
from sampling import relative_error, rounding, sample_flux

from svdquant_pack.nodes.host.lora.patches import combine, content_of, identity_of
from svdquant_pack.svdq_core.errors import LoraError, SVDQuantError

PROJ = "diffusion_model.double_blocks.0.img_attn.proj"


def test_equal_tensors_are_known_as_equal():
    a = torch.randn(3, 200)
    b, c = a.clone(), a.clone()
    c[2, 199] += 1
    assert content_of(a) is content_of(b) is content_of(a)
    assert content_of(c) is not content_of(a)
    d = torch.zeros(4).to(torch.float8_e4m3fn)
    assert content_of(d) is content_of(d.clone())
    assert content_of(d) is not content_of(torch.zeros(4))
    assert content_of(torch.zeros(0, 3)) is not content_of(torch.zeros(0, 2))
    assert content_of(torch.ones(())) is content_of(torch.ones(()))
    assert content_of(a.T) is content_of(a.T.contiguous())


def test_a_tensor_that_is_gone_is_not_mistaken_for_a_new_one():
    a = torch.randn(3, 200)
    first = content_of(a)
    del a
    assert content_of(torch.randn(3, 200)) is not first


def test_patches_of_equal_content_are_equal():
    def adapter():
        lora = comfy.lora.load_lora(diffusers_lora(5), {"transformer.proj_out": "w"}, log_missing=False)
        return lora["w"]

    other = diffusers_lora(6)
    assert identity_of(adapter()) == identity_of(adapter())
    lora = comfy.lora.load_lora(other, {"transformer.proj_out": "w"}, log_missing=False)
    assert identity_of(adapter()) != identity_of(lora["w"])


def test_equal_patches_merge_only_where_order_does_not_matter():
    tensor = torch.randn(2, 2)
    diff = ("diff", (tensor,))
    assert combine([(1.0, diff, 1.0, None, None), (-1.0, diff, 1.0, None, None)]) == []
    kept = [(1.0, diff, 1.0, None, None), (1.0, ("set", (tensor,)), 1.0, None, None), (-1.0, diff, 1.0, None, None)]
    assert combine(kept) == kept


# Strengths


def test_strength_zero_is_no_lora(model, plain):
    zero = model.clone()
    targets = comfy.lora.model_lora_keys_unet(model.model, {})
    assert zero.add_patches(comfy.lora.load_lora(diffusers_lora(5), targets), 0.0)
    assert not zero.patches
    assert torch.equal(sample_flux(zero), plain)


def test_plus_and_minus_is_none(model, plain, add):
    """Also when two loaders have read the same file, each for itself."""
    both = add(add(model, diffusers_lora(5), 0.7), diffusers_lora(5), -0.7)
    assert not both.patches
    assert torch.equal(sample_flux(both), plain)


def test_the_same_lora_twice_is_one_of_the_sum(model, add):
    twice = add(add(model, diffusers_lora(5), 0.25), diffusers_lora(5), 0.5)
    assert torch.equal(sample_flux(twice), sample_flux(add(model, diffusers_lora(5), 0.75)))


def test_the_order_of_loras_does_not_matter(model, add):
    one = add(add(model, diffusers_lora(5), 0.5), diffusers_lora(6), 0.25)
    other = add(add(model, diffusers_lora(6), 0.25), diffusers_lora(5), 0.5)
    assert relative_error(sample_flux(one), sample_flux(other)) < rounding(5e-6)  # sums in another order


# What cannot work


def test_wrong_shapes_are_refused_by_name(model, plain, add):
    lora = {f"{PROJ}.lora_A.weight": torch.zeros(4, 320), f"{PROJ}.lora_B.weight": torch.zeros(256, 4)}
    with pytest.raises(LoraError, match=r"double_blocks\.0\.img_attn\.proj.*256 outputs and 320 inputs.*256 inputs"):
        add(model, lora)
    lora = {f"{PROJ}.lora_A.weight": torch.zeros(4, 256), f"{PROJ}.lora_B.weight": torch.zeros(256, 8)}
    with pytest.raises(LoraError, match=r"img_attn\.proj.*another model"):
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
