"""Smoothing factors: exact in 16 bits, bounded, 1 for dead channels, and chosen by score."""

import pytest
import torch

from svdquant_pack.svdq_core.quantize import InputStatistics
from svdquant_pack.svdq_core.quantize.smooth import (
    activation_level,
    choose_factor,
    normalize_factor,
    propose_factors,
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


def test_activation_spans_need_measured_statistics():
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    drawn = InputStatistics.synthetic(64, (), 16, torch.Generator().manual_seed(0))
    labels = [label for label, _ in propose_factors(weight, drawn)]
    assert not any("x^" in label for label in labels)
    labels = [label for label, _ in propose_factors(weight, InputStatistics.from_tokens(drawn.tokens))]
    assert len(labels) == 1 + 2 * 38


def test_chooses_the_lowest_score():
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 64)
    statistics = InputStatistics.synthetic(64, (), 16, torch.Generator().manual_seed(0))
    wanted = normalize_factor(weight.abs().amax(dim=0) ** -0.3, torch.bfloat16)
    found, label = choose_factor(weight, statistics, 1.0, torch.bfloat16, lambda f: float((f - wanted).norm()))
    assert label == "absmax w^-0.3"
    assert torch.equal(found, wanted)
