"""The time expected of a run: what each group of layers takes by itself, and what its weights take."""

import pytest
import torch

from svdquant_pack.svdq_core.quantize import estimate
from svdquant_pack.svdq_core.quantize.estimate import BEST_OVER_FAST, FORWARD, duration, estimate_seconds, expected_time
from svdquant_pack.svdq_core.quantize.model_plan import ModelPlan, PlannedLayer
from svdquant_pack.svdq_core.quantize.part_plan import LayerPlan
from svdquant_pack.svdq_core.quantize.spec import QuantSpec

SIDE = 4096
FIXED, EACH = 0.02, 1e-9  # seconds of a group, and of a weight


def plan(groups: int, modulation: bool = False) -> ModelPlan:
    """Pairs of layers of one input, a pair to a block."""
    whole, layers = LayerPlan.whole(SIDE, SIDE), {}
    for i in range(groups):
        for name in ("q", "k"):
            full = f"blocks.{i}.{name}"
            layers[full] = PlannedLayer(full, f"blocks.{i}", SIDE, SIDE, whole, f"blocks.{i}.q")
    if modulation:
        layers["mod"] = PlannedLayer("mod", "blocks.0", SIDE, SIDE, LayerPlan.modulation(SIDE, SIDE), "mod")
    return ModelPlan("Model", 1, layers)


def test_groups_and_weights_both_count(monkeypatch):
    monkeypatch.setattr(estimate, "_trial", lambda side, spec, device: FIXED + EACH * side**2)
    expected = FORWARD * 10 * (FIXED + EACH * 2 * SIDE**2)
    device = torch.device("cuda")
    assert estimate_seconds(plan(10), QuantSpec(), device) == pytest.approx(expected)
    assert estimate_seconds(plan(10, modulation=True), QuantSpec(), device) == pytest.approx(expected)
    best = QuantSpec(method="best")
    assert estimate_seconds(plan(10), best, device) == pytest.approx(BEST_OVER_FAST * expected)


def test_a_cpu_goes_by_the_weights(monkeypatch):
    monkeypatch.setattr(estimate, "_trial", lambda side, spec, device: EACH * side**2)
    found = estimate_seconds(plan(10), QuantSpec(), torch.device("cpu"))
    assert found == pytest.approx(FORWARD * 10 * EACH * 2 * SIDE**2)


def test_small_models_are_not_worth_a_trial(monkeypatch):
    monkeypatch.setattr(estimate, "_trial", lambda *_: 1 / 0)
    assert estimate_seconds(plan(1), QuantSpec(), torch.device("cpu")) == 0
    assert expected_time(plan(1), QuantSpec(), torch.device("cpu")) == []


def test_without_memory_nothing_is_said(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(estimate, "_trial", fail)
    assert expected_time(plan(10), QuantSpec(), torch.device("cpu")) == []


def test_a_trial_runs():
    seconds = estimate._trial(128, QuantSpec(rank=16), torch.device("cpu"))
    assert 0 < seconds < 60


@pytest.mark.parametrize(("seconds", "words"), [(41, "41 seconds"), (300, "5 minutes"), (9000, "2.5 hours")])
def test_words(seconds, words):
    assert duration(seconds) == words
