"""Whether a model will quantize badly is said before the run, with the layers that make it so."""

from pathlib import Path

import pytest
import torch

from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.quantize.model_plan import ModelPlan, PlannedLayer
from svdquant_pack.svdq_core.quantize.one_layer import quantize_layer
from svdquant_pack.svdq_core.quantize.part_plan import LayerPlan
from svdquant_pack.svdq_core.quantize.precheck import BAD, GOOD, LIMIT, precheck
from svdquant_pack.svdq_core.quantize.source_model import open_described
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


def with_outliers(weight, size=40.0):
    """A weight as large as that in every group, at another place in each row."""
    generator = torch.Generator().manual_seed(7)
    for start in range(0, weight.shape[1], 64):
        for row in weight:
            row[start + int(torch.randint(64, (1,), generator=generator))] = size
    return weight


def heavy_tails(weight, freedom):
    torch.manual_seed(1)
    return weight / (torch.distributions.Chi2(torch.tensor(freedom)).sample(weight.shape) / freedom).sqrt()


CASES = {
    "normal": lambda weight: weight,
    "t, 4": lambda weight: heavy_tails(weight, 4.0),
    "t, 2.5": lambda weight: heavy_tails(weight, 2.5),
    "outliers of 10": lambda weight: with_outliers(weight, 10.0),
    "outliers of 30": lambda weight: with_outliers(weight, 30.0),
}


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_expected_is_what_quantizing_gives(case, precision):
    """Evidence for EXPECTED: the whole layer, with its branch and 4-bit activations."""
    spec = QuantSpec(precision=precision, activations="w4a4", rank=16)
    weight = CASES[case](torch.randn(512, 512, generator=torch.Generator().manual_seed(3)))
    plan = ModelPlan("Model", 1, {"b.0.x": PlannedLayer("b.0.x", "b.0", 512, 512, LayerPlan.whole(512, 512), "b.0.x")})
    expected = precheck(plan, {"b.0.x.weight": weight}, spec).expected["b.0.x"]
    (report,) = quantize_layer(weight, None, LayerPlan.whole(512, 512), spec, "b.0.x")[1]
    assert expected == pytest.approx(report.relative_error, rel=0.12)


def test_normal_weights_are_no_reason_to_warn():
    found = precheck(*model(), SPEC)
    assert len(found.losses) == 6 and not found.warnings()  # the first, a middle and the last block
    assert found.median < GOOD and max(found.expected.values()) < GOOD
    assert found.summary() == [
        "expected error of a layer at W4A4, from its weights: median 0.13 (models at 0.15 come out well, at 0.21 badly)"
    ]


def test_columns_of_different_size_are_what_smoothing_is_for():
    sizes = torch.logspace(-2, 2, 256)
    assert not precheck(*model(lambda name, weight: weight * sizes), SPEC).warnings()


def test_outliers_everywhere():
    found = precheck(*model(lambda name, weight: with_outliers(weight)), SPEC)
    (line,) = found.warnings()
    assert found.share == 1.0 and found.median > BAD
    assert "will quantize badly" in line and "blocks.0.attn (" in line
    as_int8 = precheck(*model(lambda name, weight: with_outliers(weight)), QuantSpec(precision="int8"))
    assert not as_int8.hurt and not as_int8.summary()


def test_a_median_between_good_and_bad():
    found = precheck(*model(lambda name, weight: with_outliers(weight, 9.0)), SPEC)
    (line,) = found.warnings()
    assert LIMIT < found.median < BAD and not found.hurt and "half of its layers" in line


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
    assert found.expected[NAMES[-1]] > BAD


def test_inputs_that_fill_no_group():
    layer = PlannedLayer("b.0.x", "b.0", 256, 100, LayerPlan.whole(256, 100), "b.0.x")
    weight = torch.randn(256, 100, generator=torch.Generator().manual_seed(0))
    assert precheck(ModelPlan("Model", 1, {"b.0.x": layer}), {"b.0.x.weight": weight}, SPEC).median < GOOD


def test_the_demo_model():
    """A trained FLUX: no warning, as its pictures deserve."""
    demo = Path(__file__).parents[3] / "demo" / "models" / "demo_flux_bf16.safetensors"
    source = open_described(Checkpoint(demo))
    found = precheck(source.plan, source.weights, SPEC)
    assert len(found.losses) > 20 and not found.warnings() and 0.12 < found.median < 0.14


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite(value):
    plan, weights = model()
    weights["blocks.0.mlp.weight"][0, 3] = value
    assert "blocks.0.mlp" in precheck(plan, weights, SPEC).warnings()[0]
