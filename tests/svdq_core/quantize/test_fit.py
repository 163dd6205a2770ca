"""Branch and rounding together: what an input never reaches costs nothing."""

from dataclasses import replace

import pytest
import torch

from svdquant_pack.svdq_core.quantize.fit import column_importance, fit_part
from svdquant_pack.svdq_core.quantize.grid import runtime_arithmetic
from svdquant_pack.svdq_core.quantize.problem import Problem
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics

N, K, DEAD = 192, 256, 64


def problem_of(precision, level=0.1):
    g = torch.Generator().manual_seed(0)
    x = level * torch.randn(1024, K, generator=g)
    x[:, :: K // DEAD] = 0
    weight = torch.randn(N, K, generator=g) / 16
    weight[:, :: K // DEAD] *= 3
    arithmetic = runtime_arithmetic(precision, "w4a8", False)
    return Problem(weight, InputStatistics.from_tokens(x), arithmetic, rank=16, score_tokens=1024)


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_dead_channels_take_nothing_from_the_others(precision):
    problem, ones = problem_of(precision), torch.ones(K)
    without = problem.weight.clone()
    without[:, :: K // DEAD] = 0
    easier = replace(problem, weight=without)
    error, least = fit_part(problem, ones).error(problem), fit_part(easier, ones).error(easier)
    # with an importance of 1 for channels that are never used: 2.5 and 2.0 times
    assert error < 1.02 * least


def test_importance_is_positive_and_that_of_live_channels_exact():
    problem = problem_of("int4")
    importance = column_importance(problem, torch.ones(K))
    live = problem.statistics.mean_square > 0
    assert torch.equal(importance[live], problem.statistics.mean_square[live])
    assert 0 < float(importance[~live].max()) < 1e-3 * float(importance[live].min())
    silent = InputStatistics.from_tokens(torch.zeros(8, K))
    assert torch.equal(column_importance(replace(problem, statistics=silent), torch.ones(K)), torch.ones(K))


def test_a_channel_that_wakes_up_later_is_not_thrown_away():
    problem = problem_of("int4")
    fit = fit_part(problem, torch.ones(K))
    awake = torch.randn(512, K, generator=torch.Generator().manual_seed(1))
    later = replace(problem, statistics=InputStatistics.from_tokens(awake), score_tokens=512)
    assert fit.error(later) < 0.5  # a quarter of all channels, with weights three times as large: 0.87 without them
