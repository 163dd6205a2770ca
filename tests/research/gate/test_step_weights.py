"""Errors at each step are weighed by what they do to the picture, and recordings count tokens by that."""

import pytest
import torch

from svdquant_pack.research.evaluate.evaluated_scenes import calibration_scenes
from svdquant_pack.research.evaluate.network import load_flux
from svdquant_pack.research.gate.step_weights import join_weighted, weigh_steps
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics

CPU = torch.device("cpu")


def part(value, count=400):
    x = value * torch.ones(count, 4)
    hessians = {(0, 4): x.T @ x / count}
    return InputStatistics(x, x[0] ** 2, x[0].abs(), count, hessians, count, x[0])


def test_parts_count_by_their_weights():
    joined = join_weighted([part(1.0), part(3.0)], torch.tensor([1.5, 0.5]), seed=0)
    assert float(joined.mean[0]) == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert float(joined.mean_square[0]) == pytest.approx(0.75 * 1 + 0.25 * 9)
    torch.testing.assert_close(joined.hessians[0, 4], torch.full((4, 4), 0.75 * 1 + 0.25 * 9))
    assert joined.count == joined.hessian_count == 800 and float(joined.absmax[0]) == 3
    ones = int((joined.tokens[:, 0] == 1).sum())
    assert (ones, len(joined.tokens)) == (400, 656)  # all there are of the 768 wanted, and 256


def test_every_step_is_weighed():
    weights = weigh_steps(load_flux(CPU), calibration_scenes(1, CPU), steps=3, seed=0)
    assert weights.shape == (3,) and float(weights.mean()) == pytest.approx(1) and float(weights.min()) > 0
    assert float(weights.max()) > 1.05 * float(weights.min())
