"""Scores of smoothing factors, several at once, are those of each alone and of the arithmetic that they stand for."""

import pytest
import torch
from planted_layers import draw_tokens, draw_weight

from svdquant_pack.kernels.format import GELU_SHIFT
from svdquant_pack.kernels.reference import requantize_int8
from svdquant_pack.svdq_core.quantize import problem as module
from svdquant_pack.svdq_core.quantize.grid import runtime_arithmetic
from svdquant_pack.svdq_core.quantize.low_rank import truncated_svd
from svdquant_pack.svdq_core.quantize.problem import SCORE_STEPS, Problem
from svdquant_pack.svdq_core.quantize.round import round_by_absmax
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics

N, K = 192, 128


def pose(precision="int4", activations="w4a8", shift=0.0, polled=None) -> Problem:
    return Problem(
        weight=draw_weight(N, K).float(),
        statistics=InputStatistics.from_tokens(draw_tokens(256, K, after_gelu=shift > 0)),
        arithmetic=runtime_arithmetic(precision, activations, shift > 0),
        shift=shift,
        rank=8,
        score_tokens=64,
        poll=(lambda: None) if polled is None else (lambda: polled.append(1)),
    )


def factors(count: int = 5) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [(0.3 * torch.randn(K, generator=g)).exp().bfloat16().float() for _ in range(count)]


@pytest.mark.parametrize(
    ("precision", "activations", "shift"),
    [("int4", "w4a8", 0.0), ("int4", "w4a4", 0.0), ("int4", "w4a4", GELU_SHIFT), ("int8", "w4a8", 0.0)],
)
def test_together_as_alone(precision, activations, shift):
    problem, tried = pose(precision, activations, shift), factors()
    together = problem._score(torch.stack(tried), problem._test_matrix)
    for one, factor in zip(together.tolist(), tried, strict=True):
        alone = problem.score_factors([factor])[0]
        assert one == pytest.approx(alone, rel=1e-3)
        up, down = truncated_svd(problem.weight * factor, 8, problem._test_matrix, SCORE_STEPS)
        residual = problem.weight * factor - up @ down
        values = round_by_absmax(residual, problem.arithmetic.weights, torch.bfloat16)
        assert one == pytest.approx(problem.squared_error(values, factor, (down / factor).T, up), rel=1e-3)


@pytest.mark.parametrize("elements", [1, 3 * N * K], ids=["one at a time", "three"])
def test_as_many_at_once_as_memory_allows(elements, monkeypatch):
    counts: list[int] = []
    original = Problem._score

    def counting(self, several, start):
        counts.append(len(several))
        return original(self, several, start)

    monkeypatch.setattr(Problem, "_score", counting)
    monkeypatch.setattr(module, "SCORE_ELEMENTS", elements)
    polled: list[int] = []
    problem = pose(polled=polled)
    assert len(problem.score_factors(factors(5))) == 5 and problem.score_factors([]) == []
    assert counts == [1] * 5  # on the CPU, where nothing is launched
    assert len(polled) == 5
    monkeypatch.setattr(module, "_is_launched", lambda device: True)
    counts.clear()
    assert len(problem.score_factors(factors(5))) == 5
    assert counts == ([1] * 5 if elements == 1 else [3, 2])


def test_nvfp4_has_one_factor_for_a_whole_weight(monkeypatch):
    monkeypatch.setattr(module, "_is_launched", lambda device: True)
    tried = factors(3)
    alone = [pose("nvfp4", "w4a4").score_factors([factor])[0] for factor in tried]
    assert pose("nvfp4", "w4a4").score_factors(tried) == pytest.approx(alone, rel=1e-6)


def test_int8_of_a_weight_is_that_of_the_runtime():
    weight = draw_weight(N, K).float()
    weight[5] = 0
    codes, scales = requantize_int8(weight)
    assert torch.equal(module._round_to_int8(weight.clone()), codes.float() * scales[:, None])
    both = torch.stack((weight, 3 * weight))
    assert torch.equal(module._round_to_int8(both.clone())[0], codes.float() * scales[:, None])
