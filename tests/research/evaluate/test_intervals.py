"""Bootstrap intervals: as wide as theory says, narrower with more captions, paired."""

import pytest
import torch

from svdquant_pack.research.evaluate.intervals import estimate


def test_width_is_that_of_the_normal_approximation():
    values = torch.randn(400) * 3 + 5
    found = estimate(values)
    assert found.mean == pytest.approx(float(values.double().mean()))
    assert found.half_width == pytest.approx(1.96 * float(values.std()) / 20, rel=0.1)
    assert found.low < found.mean < found.high and found.count == 400


def test_gaps_are_left_out_and_nothing_is_nothing():
    values = torch.tensor([1.0, float("nan"), 3.0])
    assert (estimate(values).mean, estimate(values).count) == (2.0, 2)
    assert estimate(torch.full((3,), float("nan"))) is None


def test_paired_differences_are_surer_than_the_figures():
    common = torch.randn(200)
    other = common + 0.1 + 0.01 * torch.randn(200)
    assert estimate(other - common).half_width < 0.1 * estimate(common).half_width
