"""Groups of 128 in files, of 64 in memory."""

import pytest
import torch

from svdquant_pack.svdq_core.checkpoint.group_pairs import pair_groups, split_pairs
from svdquant_pack.svdq_core.layer import QuantizedLayer
from svdquant_pack.svdq_core.quantize.part_plan import LayerPlan
from svdquant_pack.svdq_core.quantize.w4a16 import fit_w4a16


def layer(group: int, columns: int = 256) -> QuantizedLayer:
    weight = torch.randn(8, columns, generator=torch.Generator().manual_seed(0))
    part = fit_w4a16(weight, group, torch.bfloat16).part(LayerPlan.text_encoder(8, columns, group).parts[0])
    return QuantizedLayer(columns, 8, (part,))


@pytest.mark.parametrize(("group", "stored"), [(64, 4), (128, 2)])
def test_a_pair_is_stored_once(group, stored):
    before = layer(group)
    paired = pair_groups(before)
    assert len(paired.parts[0]["wscales"]) == len(paired.parts[0]["wzeros"]) == stored
    after = split_pairs(paired)
    assert all(torch.equal(after.parts[0][name], tensor) for name, tensor in before.parts[0].tensors.items())


def test_an_odd_number_of_groups_stays():
    assert len(pair_groups(layer(64, 192)).parts[0]["wscales"]) == 3


def test_scales_alone_make_no_pair():
    before = layer(128)
    before.parts[0]["wzeros"][1] += 1
    assert len(pair_groups(before).parts[0]["wscales"]) == 4


def test_other_numbers_of_groups_are_left_to_the_check():
    damaged = pair_groups(pair_groups(layer(128)))
    damaged.parts[0].tensors["wscales"] = damaged.parts[0]["wscales"][:1]
    assert len(split_pairs(damaged).parts[0]["wscales"]) == 1
