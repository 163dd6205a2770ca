"""The eight shapes as signed distances: negative inside, in units of the shape's radius, y pointing down.

Closed forms for the star's edge and the heart: Inigo Quilez, "2D distance functions".
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...demo.scenes import SHAPES


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.95


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.82


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    y = y - 0.18
    return torch.maximum(y, math.sqrt(0.75) * x.abs() - 0.5 * y) - 0.56


def _star(x: Tensor, y: Tensor) -> Tensor:
    tip, notch, sector = 1.08, 0.47, 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    angle = (angle - sector * torch.round(angle / sector)).abs()  # fold onto half an arm
    radius = torch.hypot(x, y)
    along, across = radius * torch.cos(angle), radius * torch.sin(angle)
    edge = (notch * math.cos(sector / 2) - tip, notch * math.sin(sector / 2))
    return ((along - tip) * edge[1] - across * edge[0]) / math.hypot(*edge)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.71).abs() - 0.25


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.95, y - 0.33), torch.maximum(x - 0.33, y - 0.95))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, y = 0.6 * x.abs(), 0.58 - 0.6 * y
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    foot = 0.5 * (x + y).clamp(min=0)
    side = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - foot, y - foot)) * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, side) / 0.6


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (1.15 * x.abs() + y.abs() - 1.08) / 1.5


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "diamond": _diamond,
}


def signed_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance of points from shapes, in radii.

    Args:
        shape: (N,) int64, index into SHAPES.
        x, y: coordinates from the shape's middle, in radii; both broadcast to (N, H, W).

    Returns:
        (N, H, W)
    """
    order = shape.argsort()
    counts = torch.bincount(shape, minlength=len(SHAPES)).tolist()
    x, y = (part.expand(len(shape), -1, -1)[order] for part in (x, y))
    parts = [
        _DISTANCES[name](*points)
        for name, *points in zip(SHAPES, x.split(counts), y.split(counts), strict=True)
        if len(points[0])
    ]
    return torch.cat(parts)[order.argsort()]
