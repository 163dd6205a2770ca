"""Figures of picture pairs: by hand where a hand can, against the formula written out window by window elsewhere."""

import math

import pytest
import torch

from svdquant_pack.svdq_core.picture_metrics import mean_absolute_difference, psnr, ssim

MEASURES = (psnr, ssim, mean_absolute_difference)


def slow_ssim(x, y):
    """The definition: every 11 x 11 window with Gaussian weights, float64, mean over windows and channels."""
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    weights = line[:, None] * line
    weights /= weights.sum()
    values = []
    for channel in range(x.shape[-1]):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                a, b = (p[top : top + 11, left : left + 11, channel].double() for p in (x, y))
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                variance_a, variance_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
                covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
                top_half = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
                values.append(top_half / ((mean_a**2 + mean_b**2 + 0.01**2) * (variance_a + variance_b + 0.03**2)))
    return float(sum(values) / len(values))


def test_equal_pictures():
    x = torch.rand(2, 16, 20, 3)
    assert torch.equal(psnr(x, x), torch.full((2,), math.inf))
    assert torch.allclose(ssim(x, x), torch.ones(2), atol=1e-6)
    assert torch.equal(mean_absolute_difference(x, x), torch.zeros(2))


def test_psnr_and_mean_difference_by_hand():
    x = torch.full((2, 12, 12, 3), 0.5)
    y = torch.stack((x[0] + 0.1, x[1] - 0.01))
    assert psnr(y, x).tolist() == pytest.approx([20, 40], abs=1e-4)
    assert mean_absolute_difference(y, x).tolist() == pytest.approx([0.1, 0.01], abs=1e-6)


@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_ssim_is_what_the_paper_defines(noise):
    x = torch.rand(2, 13, 17, 3)
    y = (x + noise * torch.randn_like(x)).clamp(0, 1)
    expected = [slow_ssim(a, b) for a, b in zip(y, x, strict=True)]
    assert ssim(y, x).tolist() == pytest.approx(expected, abs=2e-5)
    assert max(expected) < 0.999


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (10, 10)])
def test_small_pictures_are_measured(size):
    x = torch.rand(1, *size, 3)
    assert float(ssim(x, x)) == pytest.approx(1)
    assert float(ssim(1 - x, x)) < 0.99


@pytest.mark.parametrize("measure", MEASURES)
def test_half_precision_is_measured_in_float32(measure):
    x, y = torch.rand(2, 1, 12, 12, 3).to(torch.bfloat16)
    assert measure(x, y).dtype == torch.float32
    assert float(measure(x, y)) == float(measure(x.float(), y.float()))


@pytest.mark.parametrize("measure", MEASURES)
def test_other_shapes_are_refused(measure):
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 3\) with \(2, 4, 4, 3\)"):
        measure(torch.zeros(1, 4, 4, 3), torch.zeros(2, 4, 4, 3))
