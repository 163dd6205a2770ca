"""Patches of the host: what adds up is added, and what scales a weight is one factor on it."""

import comfy.lora
import torch
from lora_files import diffusers_lora
from sampling import relative_error, rounding, sample_flux

from svdquant_pack.nodes.host.lora.patches import combine, fold_scales


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


# Scales


def diff(tensor, strength=1.0, scale=1.0, offset=None) -> tuple:
    return strength, ("diff", (tensor,)), scale, offset, None


def test_a_factor_acts_on_what_was_added_before_it():
    one, other = torch.ones(2, 2), torch.ones(2, 2) * 2
    patches = [diff(one, 1.0), (0.0, (None,), 0.5, None, None), diff(other, 1.0, 3.0)]
    scale, folded = fold_scales(patches)
    assert scale == 1.5
    assert [(patch[0], patch[2]) for patch in folded] == [(1.5, 1.0), (1.0, 1.0)]
    weight = torch.full((2, 2), 10.0)
    expected = comfy.lora.calculate_weight(patches, weight.clone(), "w")
    assert torch.equal(comfy.lora.calculate_weight(folded, weight * scale, "w"), expected)


def test_what_is_no_such_sum_stays_as_it_is():
    tensor = torch.ones(2, 2)
    for patches in ([diff(tensor, 1.0, 0.5, (0, 0, 1))], [diff(tensor), (1.0, ("set", (tensor,)), 0.5, None, None)]):
        assert fold_scales(patches) == (1.0, patches)


def test_a_factor_of_one_is_nothing():
    assert fold_scales([(0.0, (None,), 1.0, None, None)]) == (1.0, [])
