"""Input statistics: what is assumed without data, what columns and samples keep."""

import pytest
import torch

from svdquant_pack.svdq_core.quantize import InputStatistics
from svdquant_pack.svdq_core.quantize.statistics import GELU_MEAN_SQUARE, named_generator


def test_generators_depend_on_seed_and_name_only():
    first, again, other, third = (
        torch.rand(3, generator=named_generator(*key)) for key in ((0, "a"), (0, "a"), (0, "b"), (1, "a"))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, third)


def test_synthetic_inputs_are_normal_and_their_gelu():
    drawn = InputStatistics.synthetic(64, ((32, 64),), 20_000, torch.Generator().manual_seed(0))
    assert not drawn.measured
    assert drawn.tokens[:, :32].square().mean() == pytest.approx(1, abs=0.01)
    assert drawn.tokens[:, 32:].min() > -0.1701
    assert drawn.tokens[:, 32:].square().mean() == pytest.approx(GELU_MEAN_SQUARE, abs=0.005)
    assert drawn.mean_square.unique().tolist() == pytest.approx([GELU_MEAN_SQUARE, 1.0])


def test_from_tokens_and_columns():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    part = InputStatistics.from_tokens(x).columns(2, 6)
    assert part.count == 50
    assert part.channels == 4
    torch.testing.assert_close(part.mean_square, x[:, 2:6].square().mean(dim=0))
    hessian, count = part.hessian()
    assert count == 50
    torch.testing.assert_close(hessian, x[:, 2:6].T @ x[:, 2:6] / 50)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (3, 3), (10, 10), (50, 50), (99, 50)])
def test_sample_is_evenly_strided_and_bounded(count, expected):
    x = torch.arange(50.0)[:, None]
    sample = InputStatistics.from_tokens(x).sample(count)
    assert len(sample) <= count
    assert len(sample) >= expected / 2
    assert sample[0] == 0
