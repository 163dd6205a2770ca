"""Differences that replicates share are told from those that one seed brings."""

import math

import pytest
import torch

from svdquant_pack.research.gate.comparison import BETTER, UNCLEAR, UNKNOWN, WORSE, change, spread

CAPTIONS = 60


def errors(mean, of_replicates=(0.0, 0.0, 0.0, 0.0), seed=0):
    g = torch.Generator().manual_seed(seed)
    captions = 1 + 0.3 * torch.rand(CAPTIONS, generator=g)
    return torch.stack([(mean + shift) * captions for shift in of_replicates])


def test_a_gain_in_every_replicate_is_one():
    found = change(errors(0.095, (0.001, -0.001, 0.0, 0.0)), errors(0.1, (0.001, 0.0, -0.001, 0.0)))
    assert found.mean == pytest.approx(-0.05, abs=0.001) and found.verdict == BETTER
    assert change(errors(0.1), errors(0.095)).verdict == WORSE


def test_a_gain_of_one_lucky_seed_is_none():
    lucky = change(errors(0.1, (-0.02, 0.004, -0.003, 0.002)), errors(0.1))
    assert lucky.mean < -0.03 and lucky.verdict == UNCLEAR
    # over captions alone it looks sure: all of them gain on average
    assert abs(lucky.mean) > lucky.captions


def test_captions_that_disagree_give_no_verdict():
    g = torch.Generator().manual_seed(1)
    noise = 0.05 * torch.randn(CAPTIONS, generator=g)
    found = change(errors(0.1) + noise - noise.mean() - 0.002, errors(0.1))
    assert found.deviation == pytest.approx(0, abs=1e-9) and found.verdict == UNCLEAR


def test_one_replicate_gets_no_verdict():
    found = change(errors(0.05, (0.0,)), errors(0.1, (0.0,)))
    assert found.verdict == UNKNOWN and math.isnan(found.deviation) and found.mean < 0


def test_the_interval_over_replicates_is_student_s():
    values = torch.tensor([[0.0], [1.0], [2.0]]).expand(3, CAPTIONS)
    found = spread(values)
    assert (found.mean, found.deviation, found.captions) == (1.0, 1.0, 0.0)
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3))


def test_no_effect_seldom_gets_a_verdict():
    g = torch.Generator().manual_seed(2)
    verdicts = [
        change(
            errors(0.1) + 0.003 * torch.randn(4, 1, generator=g) + 0.003 * torch.randn(4, CAPTIONS, generator=g),
            errors(0.1) + 0.003 * torch.randn(4, 1, generator=g) + 0.003 * torch.randn(4, CAPTIONS, generator=g),
        ).verdict
        for _ in range(300)
    ]
    assert sum(v != UNCLEAR for v in verdicts) / 300 < 0.09  # 5 % are expected
