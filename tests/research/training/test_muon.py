"""Muon: equal singular values, blocks that go back where they came from, and a loss that falls."""

import pytest
import torch

from svdquant_pack.research.training.muon import Muon, orthogonalize


def test_singular_values_become_about_one():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 32, 32, generator=generator) + 2 * torch.eye(32)
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.max() < 1.3
    assert values.median() > 0.65


def test_a_step_follows_each_block_by_itself():
    weight = torch.zeros(8, 12)
    gradient = torch.randn(8, 12)
    Muon([weight], block=4, decay=0.0).step([gradient], rate=1.0)
    for row in range(0, 8, 4):
        for column in range(0, 12, 4):
            block = gradient[row : row + 4, column : column + 4]
            expected = -0.2 * 4**0.5 * orthogonalize(block[None])[0]
            torch.testing.assert_close(weight[row : row + 4, column : column + 4], expected, atol=1e-4, rtol=1e-3)


def test_decay_shrinks_weights():
    weight = torch.ones(4, 4)
    Muon([weight], block=4, decay=0.5).step([torch.zeros(4, 4)], rate=0.1)
    torch.testing.assert_close(weight, torch.full((4, 4), 0.95))


def test_a_regression_is_learned():
    generator = torch.Generator().manual_seed(1)
    target, x = torch.randn(16, 16, generator=generator), torch.randn(64, 16, generator=generator)
    weight = torch.zeros(16, 16, requires_grad=True)
    muon = Muon([weight], block=16, decay=0.0)
    losses = []
    for step in range(150):
        loss = (x @ (weight - target).T).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        muon.step([gradient], rate=0.3 * (1 - step / 150))
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_a_checkpoint_keeps_the_momentum():
    first, second = (Muon([torch.zeros(4, 4)], block=4) for _ in range(2))
    first.step([torch.randn(4, 4)], rate=0.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.average, second.average)
    assert first.average.abs().sum() > 0


def test_matrices_must_fit_the_block():
    with pytest.raises(RuntimeError):
        Muon([torch.zeros(6, 4)], block=4).step([torch.randn(6, 4)], rate=0.1)
