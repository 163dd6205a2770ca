"""PSNR, relative error and identity, on values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from svdquant_pack.demo.metrics import is_identical, psnr, relative_error

GREY = np.full((4, 4, 3), 100, np.uint8)


def test_psnr():
    assert psnr(GREY, GREY) == math.inf
    assert psnr(GREY + 1, GREY) == pytest.approx(20 * math.log10(255))
    # differences of unsigned bytes must not wrap around
    assert psnr(GREY - 1, GREY) == pytest.approx(20 * math.log10(255))
    assert psnr(np.zeros_like(GREY), np.full_like(GREY, 255)) == pytest.approx(0)


def test_relative_error():
    reference = torch.tensor([3.0, 4.0])
    assert relative_error(reference, reference) == 0
    assert relative_error(torch.tensor([3.0, 5.0]), reference) == pytest.approx(0.2)
    assert relative_error(torch.tensor([3.0, 5.0]).bfloat16(), reference) == pytest.approx(0.2)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 4, 3\) with \(2, 4, 3\)"):
        psnr(GREY, GREY[:2])
    with pytest.raises(ValueError, match=r"\(3,\) with \(2,\)"):
        relative_error(torch.zeros(3), torch.ones(2))


def test_identity_sees_one_bit():
    latent = torch.randn(1, 4, 8, 8)
    assert is_identical(latent, GREY, latent.clone(), GREY.copy())
    changed = latent.clone()
    changed.view(torch.int32)[0, 0, 0, 0] ^= 1
    assert not is_identical(latent, GREY, changed, GREY)
    pixel = GREY.copy()
    pixel[0, 0, 0] += 1
    assert not is_identical(latent, GREY, latent, pixel)
    assert not is_identical(latent, GREY, latent.double(), GREY)
