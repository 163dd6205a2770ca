"""Whether a model will quantize badly is said before the run, with the layers that make it so."""

import pytest
import torch

from svdquant_pack.svdq_core.quantize.model_plan import ModelPlan, PlannedLayer
from svdquant_pack.svdq_core.quantize.part_plan import LayerPlan
from svdquant_pack.svdq_core.quantize.precheck import TOO_MUCH, precheck
from svdquant_pack.svdq_core.quantize.spec import QuantSpec

SPEC = QuantSpec()
NAMES = [f"blocks.{index}.{end}" for index in range(9) for end in ("attn", "mlp")]


def model(change=lambda name, weight: weight):
    generator = torch.Generator().manual_seed(0)
    layers, weights = {}, {}
    for name in NAMES:
        layers[name] = PlannedLayer(name, name.rpartition(".")[0], 256, 256, LayerPlan.whole(256, 256), name)
        weights[f"{name}.weight"] = change(name, torch.randn(256, 256, generator=generator))
    return ModelPlan("Model", 10**6, layers), weights


def with_outliers(weight):
    """A weight twenty times as large as the others in every group, no two in one column of many rows."""
    rows = torch.arange(len(weight))
    for start in range(0, weight.shape[1], 64):
        weight[rows, start + (rows // 2 * 7) % 64] = 40.0
    return weight


def test_normal_weights_are_no_reason_to_warn():
    found = precheck(*model(), SPEC)
    assert len(found.losses) == 6 and not found.warnings()  # the first, a middle and the last block
    assert max(found.losses.values()) < 0.13


def test_columns_of_different_size_are_what_smoothing_is_for():
    sizes = torch.logspace(-2, 2, 256)
    assert not precheck(*model(lambda name, weight: weight * sizes), SPEC).warnings()


def test_outliers_everywhere():
    found = precheck(*model(lambda name, weight: with_outliers(weight)), SPEC)
    (line,) = found.warnings()
    assert found.share == 1.0 and "will quantize badly" in line and "blocks.0.attn (" in line
    assert not precheck(*model(lambda name, weight: with_outliers(weight)), QuantSpec(precision="int8")).hurt


def test_outliers_in_few_layers():
    plan, weights = model(lambda name, weight: with_outliers(weight) if name == NAMES[-1] else weight)
    few = dict(plan.layers)
    for index in range(100, 160):  # of another kind, so that the hurt one is a small part
        name = f"more.{index}.mlp"
        few[name] = PlannedLayer(name, f"kind{index}.0", 256, 256, LayerPlan.whole(256, 256), name)
        weights[f"{name}.weight"] = weights["blocks.0.attn.weight"]
    found = precheck(ModelPlan("Model", 10**6, few), weights, SPEC)
    (line,) = found.warnings()
    assert found.hurt == [NAMES[-1]] and line.startswith("rounding hurts these layers most") and NAMES[-1] in line
    assert found.losses[NAMES[-1]] > TOO_MUCH


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite(value):
    plan, weights = model()
    weights["blocks.0.mlp.weight"][0, 3] = value
    assert "blocks.0.mlp" in precheck(plan, weights, SPEC).warnings()[0]
