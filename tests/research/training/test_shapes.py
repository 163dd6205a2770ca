"""Signed distances: the right side of known points, and every shape by itself as in a mixture."""

import pytest
import torch

from svdquant_pack.demo.scenes import SHAPES
from svdquant_pack.research.training.shapes import signed_distance

# a point inside and one outside of each shape, where a neighbour in the list would say the opposite
POINTS = {
    "circle": ((0.64, 0.64), (0.72, 0.72)),
    "square": ((0.75, 0.75), (0.0, 0.9)),
    "triangle": ((0.7, 0.65), (0.4, -0.4)),
    "star": ((0.0, -0.95), (0.6, 0.2)),
    "ring": ((0.7, 0.0), (0.0, 0.0)),
    "cross": ((0.9, 0.25), (0.5, 0.5)),
    "heart": ((0.4, -0.5), (0.0, -0.75)),
    "diamond": ((0.0, 1.0), (0.6, 0.6)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_inside_and_outside(shape):
    index = torch.tensor([SHAPES.index(shape)])
    for (x, y), sign in zip(POINTS[shape], (-1, 1), strict=True):
        distance = signed_distance(index, torch.full((1, 1, 1), x), torch.full((1, 1, 1), y))
        assert distance.sign().item() == sign


def test_a_mixture_is_each_by_itself():
    shape = torch.tensor([5, 0, 5, 3, 7, 1])
    x, y = torch.randn(6, 4, 5), torch.randn(6, 4, 5)
    together = signed_distance(shape, x, y)
    for index in range(6):
        alone = signed_distance(shape[index : index + 1], x[index : index + 1], y[index : index + 1])
        torch.testing.assert_close(together[index : index + 1], alone)


def test_one_grid_serves_many_shapes():
    shape = torch.tensor([2, 1, 2])
    x, y = torch.randn(1, 1, 5), torch.randn(1, 4, 1)
    expected = signed_distance(shape, x.expand(3, 1, 5), y.expand(3, 4, 1))
    torch.testing.assert_close(signed_distance(shape, x, y), expected)
