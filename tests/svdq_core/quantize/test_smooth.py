"""Smoothing factors: exact in 16 bits, bounded, 1 for dead channels, and found by score."""

import pytest
import torch

from svdquant_pack.svdq_core.quantize import InputStatistics
from svdquant_pack.svdq_core.quantize.smooth import (
    Exponents,
    FactorFamily,
    activation_level,
    normalize_factor,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_normalized_factor_is_bounded_and_exact(dtype):
    factor = torch.logspace(-8, 8, 128)
    factor[[0, 5, 9]] = torch.tensor([0.0, float("nan"), float("inf")])
    found = normalize_factor(factor, dtype)
    assert torch.equal(found, found.to(dtype).float())
    assert found.min() == 2**-8
    assert found.max() == 2**8
    assert found[[0, 5, 9]].tolist() == [1, 1, 1]


def test_geometric_mean_is_the_level():
    factor = torch.rand(256, generator=torch.Generator().manual_seed(0)) + 0.5
    for level in (1.0, 0.25):
        assert normalize_factor(factor, torch.bfloat16, level).log2().mean().exp2() == pytest.approx(level, rel=0.01)


def test_all_channels_dead_gives_ones():
    assert torch.equal(normalize_factor(torch.zeros(64), torch.bfloat16), torch.ones(64))


def test_level_follows_the_activations_for_nvfp4_only():
    tokens = torch.full((4, 64), 0.25)
    assert activation_level(InputStatistics.from_tokens(tokens), "nvfp4") == 2**-4
    assert activation_level(InputStatistics.from_tokens(tokens), "int4") == 1
    assert activation_level(InputStatistics.from_tokens(torch.zeros(4, 64)), "nvfp4") == 1


def _weight():
    return torch.randn(128, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 64)


def _drawn():
    return InputStatistics.synthetic(64, (), 16, torch.Generator().manual_seed(0))


def test_without_measured_inputs_only_the_weight_speaks():
    family = FactorFamily(_weight(), _drawn(), torch.bfloat16)
    tried = []
    _, label = family.search(lambda factors: [tried.append(factor) or len(tried) for factor in factors])
    assert label == "none"
    assert torch.equal(tried[0], torch.ones(64))
    assert len(tried) >= 7


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.8, 0.0), (0.25, 0.7)])
def test_search_walks_to_the_best_exponents(alpha, beta):
    tokens = _drawn().tokens * torch.logspace(1.5, -1.5, 64)[torch.randperm(64)]
    family = FactorFamily(_weight(), InputStatistics.from_tokens(tokens), torch.bfloat16)
    wanted = family.factor(Exponents("rms", alpha, beta)).log2()
    calls = []

    def score(factors):
        calls.extend(factors)
        return [float((factor.log2() - wanted).norm()) for factor in factors]

    found, _ = family.search(score)
    assert (found.log2() - wanted).abs().max() < 0.6  # of spans over 2^10: half a small step in each exponent
    assert len(calls) <= 33


def test_a_score_that_is_not_finite_never_wins():
    family = FactorFamily(_weight(), _drawn(), torch.bfloat16)
    scores = iter([float("nan"), float("inf"), 5.0, *[float("nan")] * 40])
    _, label = family.search(lambda factors: [next(scores) for _ in factors])
    assert label != "none"


def test_a_dead_channel_gets_one():
    weight, tokens = _weight(), _drawn().tokens.clone()
    weight[:, 3] = 0
    tokens[:, 5] = 0
    family = FactorFamily(weight, InputStatistics.from_tokens(tokens), torch.bfloat16)
    for exponents in (Exponents("rms", 0.5, 0.5), Exponents("absmax", 0.8, 0.0), Exponents("rms", 0.0, 0.5)):
        assert family.factor(exponents)[[3, 5]].tolist() == [1, 1]
