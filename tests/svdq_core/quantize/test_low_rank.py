"""The low-rank branch: close to the best possible, exact when the matrix has that rank, deterministic."""

import pytest
import torch
from planted_layers import draw_weight

from svdquant_pack.svdq_core.quantize.low_rank import WARM_STEPS, draw_test_matrix, exact_svd, truncated_svd


def _test_matrix(in_features, rank, seed=0):
    return draw_test_matrix(in_features, rank, torch.Generator().manual_seed(seed), torch.device("cpu"))


@pytest.mark.parametrize("shape", [(256, 384), (384, 256), (128, 128)], ids=str)
def test_residual_is_close_to_the_best(shape):
    weight = draw_weight(*shape).float()
    best = torch.linalg.svdvals(weight.double())[32:].norm()
    for up, down, slack in (
        (*truncated_svd(weight, 32, _test_matrix(shape[1], 32)), 1.015),  # measured: 1.006 to 1.010
        (*exact_svd(weight, 32), 1.0001),
    ):
        assert (weight - up @ down).double().norm() <= best * slack
        torch.testing.assert_close(down @ down.T, torch.eye(32), atol=1e-4, rtol=0)


def test_recovers_a_matrix_of_that_rank():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 16, generator=g) @ torch.randn(16, 256, generator=g)
    up, down = truncated_svd(weight, 16, _test_matrix(256, 16))
    torch.testing.assert_close(up @ down, weight, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 16, 256])
def test_rank_is_limited_by_the_matrix(rank):
    weight = draw_weight(128, 256).float()
    up, down = truncated_svd(weight, rank, _test_matrix(256, rank))
    assert up.shape == (128, min(rank, 128))
    assert down.shape == (min(rank, 128), 256)


def test_zero_matrix_gives_finite_factors():
    up, down = truncated_svd(torch.zeros(128, 128), 16, _test_matrix(128, 16))
    assert torch.equal(up, torch.zeros(128, 16))
    assert torch.isfinite(down).all()


def test_same_test_matrix_same_bytes():
    weight = draw_weight(128, 256).float()
    first, second = (truncated_svd(weight, 32, _test_matrix(256, 32)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_good_guess_saves_steps():
    weight = draw_weight(256, 384).float()
    _, exact = exact_svd(weight, 32)
    nearby = weight + 0.02 * weight.abs().mean() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    best = torch.linalg.svdvals(nearby.double())[32:].norm()
    left = [
        (nearby - up @ down).norm()
        for up, down in (
            truncated_svd(nearby, 32, exact.T, WARM_STEPS),
            truncated_svd(nearby, 32, _test_matrix(384, 32), WARM_STEPS),
        )
    ]
    assert left[0] < 1.001 * best < 1.02 * best < left[1]
