"""The low-rank branch: close to the best possible, exact when the matrix has that rank, deterministic."""

import pytest
import torch
from planted_layers import draw_weight

from svdquant_pack.svdq_core.quantize.low_rank import (
    WARM_STEPS,
    Rotated,
    draw_test_matrix,
    exact_svd,
    truncated_svd,
)


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


def test_a_product_need_not_be_made():
    g = torch.Generator().manual_seed(3)
    matrix, root = torch.randn(96, 80, generator=g), torch.randn(80, 80, generator=g).triu()
    rotated = Rotated(matrix, torch.randperm(80, generator=g), root)
    made = matrix[:, rotated.order] @ root
    torch.testing.assert_close(rotated.made(), made)
    for found, expected in zip(
        truncated_svd(rotated, 8, _test_matrix(80, 8)), truncated_svd(made, 8, _test_matrix(80, 8)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert rotated.shape == (96, 80)


def test_several_matrices_at_once():
    g = torch.Generator().manual_seed(4)
    several, start = torch.randn(3, 64, 48, generator=g), _test_matrix(48, 8)
    up, down = truncated_svd(several, 8, start, 2)
    assert up.shape == (3, 64, 8) and down.shape == (3, 8, 48)
    for i, matrix in enumerate(several):
        one_up, one_down = truncated_svd(matrix, 8, start, 2)
        torch.testing.assert_close(up[i] @ down[i], one_up @ one_down, rtol=1e-4, atol=1e-4)
    assert [tuple(t.shape) for t in truncated_svd(several, 0, start)] == [(3, 64, 0), (3, 0, 48)]
