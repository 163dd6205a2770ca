"""The five rules, each on a model made for it."""

from dataclasses import replace

import pytest

from svdquant_pack.svdq_core.quantize.plan_rules import plan_model, split_by_input
from svdquant_pack.svdq_core.quantize.traced_layers import TracedLinear, TracedModel

IMAGE = TracedLinear("blocks.0.fc", 1024, 512, "blocks.0", "blocks", calls=1, grows_with_image=True)
PROMPT = replace(IMAGE, name="blocks.0.key", is_context=True, grows_with_image=False, grows_with_text=True)
FIXED = replace(IMAGE, name="blocks.0.mod", grows_with_image=False)


def plan(*linears: TracedLinear, parameters: int = 0):
    count = parameters or sum(linear.weights for linear in linears)
    return plan_model(TracedModel("Model", count, linears))


def test_only_blocks():
    outside = replace(IMAGE, name="head", block="", stack="")
    assert plan(IMAGE, outside).names == ["blocks.0.fc"] and "head" not in plan(IMAGE, outside)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"out_features": 1004}, "1004 outputs are no multiple of 8"),
        ({"out_features": 16, "in_features": 64}, "too few weights"),
        ({"bypassed": True}, "read past the layer"),
        ({"calls": 0}, "did not run in a step"),
        ({"calls": 0, "prepares": True}, "runs once for a prompt"),
    ],
)
def test_what_cannot_be_held_or_is_not_worth_it(change, why):
    odd = replace(IMAGE, name="blocks.0.odd", **change)
    found = plan(IMAGE, odd, parameters=100 * IMAGE.weights)["blocks.0.odd"]
    assert found.parts is None and why in found.why


def test_inputs_that_fill_no_group_are_quantized_unless_they_are_modulation():
    """OmniGen 2 is 2520 wide. W4A16 layers have no columns of zeros."""
    odd, fixed = replace(IMAGE, in_features=520, out_features=1000), replace(FIXED, in_features=520)
    found = plan(odd, fixed)
    assert found["blocks.0.fc"].parts is not None and not found["blocks.0.fc"].why
    assert found["blocks.0.mod"].parts is None and "520 inputs are no multiple of 64" in found["blocks.0.mod"].why


@pytest.mark.parametrize(("others", "quantized"), [(9, True), (10, False)], ids=["a tenth", "less"])
def test_modulation_is_worth_it_from_a_tenth(others, quantized):
    """One of ten equal layers is a tenth of the model."""
    model = [FIXED, *(replace(IMAGE, name=f"blocks.0.fc{i}") for i in range(others))]
    found = plan(*model)["blocks.0.mod"]
    assert found.is_modulation == quantized and ("less than 10%" in found.why) != quantized


def test_what_reads_the_prompt_as_it_came_stays():
    assert "the prompt as it came" in plan(IMAGE, PROMPT)["blocks.0.key"].why
    joined = replace(PROMPT, grows_with_image=True)  # reads picture and prompt together
    assert plan(IMAGE, joined)["blocks.0.key"].parts is not None


@pytest.mark.parametrize(("size", "quantized"), [(0.05, True), (0.04, False)])
def test_small_kinds_stay(size, quantized):
    refiner = replace(IMAGE, name="refiner.0.fc", block="refiner.0", stack="refiner")
    total = round(IMAGE.weights / size)
    found = plan(refiner, replace(IMAGE, out_features=16 * 1024), parameters=total)["refiner.0.fc"]
    assert (found.parts is not None) == quantized


@pytest.mark.parametrize(
    ("gelu", "parts"),
    [
        ((), [((0, 512), False)]),
        (((0, 512),), [((0, 512), True)]),
        (((128, 512),), [((0, 128), False), ((128, 512), True)]),
        (((128, 256),), [((0, 128), False), ((128, 256), True), ((256, 512), False)]),
        (((100, 512),), [((0, 512), False)]),  # an edge within a group: signed holds both
    ],
    ids=["none", "all", "the end", "the middle", "odd edge"],
)
def test_parts_by_what_comes_out_of_a_gelu(gelu, parts):
    layer = split_by_input(replace(IMAGE, gelu=gelu))
    assert [(part.columns, part.after_gelu) for part in layer.parts] == parts
    layer.check(1024, 512, "fc")
