"""How well drawn outlines fit: the overlap of each object with the ideal shape, laid over it as well as it will go.

No network is asked. Every pixel near an object counts as object when its colour is nearer to the object's, in any
light, than to the ground's, in any shadow. The captioned shape is then moved and scaled to the largest intersection
over union: a wrong or bent shape has a low one whatever its place.
"""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from ...demo.captions import SLOTS, Captions
from ...demo.scenes import SHAPES
from .renderer import RGB, SIDE, draw_ground, nominal_placement, standard_palette
from .shapes import signed_distance

_HALF = 68  # half the window's side, pixels: the largest object fits
_HALF_OF_COUNT = (0, 68, 60, 41)  # what of it belongs to this object, by the number of objects
_LIGHT, _SHADE = (0.5, 1.15), (0.6, 1.02)  # how bright an object's and a ground's colour may become
_FAR = (-9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0)
_FINE = (2.0, 1.0, 0.5, 0.25)  # pixels
_BATCH = 256


def outline_overlaps(pictures: Tensor, captions: Captions) -> Tensor:
    """Intersection over union of every object with its captioned shape, at the best place and size.

    Args:
        pictures: (B, 3, 256, 256) in [0, 1], filled objects.

    Returns:
        (B, 3), 0 to 1; NaN for slots without an object.
    """
    parts = [slice(start, start + _BATCH) for start in range(0, len(captions), _BATCH)]
    return torch.cat([_overlaps(pictures[part].float(), captions[part]) for part in parts])


def outline_figures(overlaps: Tensor) -> dict[str, float]:
    """Mean, 10th percentile and share below 0.85 of the objects' overlaps."""
    found = overlaps[~overlaps.isnan()].double()
    figures = {
        "mean IoU": found.mean().item(),
        "10th percentile of IoU": found.quantile(0.1).item(),
        "share of objects below 0.85": (found < 0.85).double().mean().item(),
    }
    return {name: round(value, 5) for name, value in figures.items()}


def shape_overlaps(overlaps: Tensor, captions: Captions) -> dict[str, float]:
    """Mean overlap of each shape and size."""
    means = {}
    for (index, shape), (size, word) in product(enumerate(SHAPES), enumerate(("small", "large"))):
        chosen = captions.is_drawn & (captions.shape == index) & (captions.size == size)
        if chosen.any():
            means[f"{word} {shape}"] = round(overlaps[chosen].mean().item(), 4)
    return means


def _overlaps(pictures: Tensor, captions: Captions) -> Tensor:
    scenes, slots = captions.is_drawn.nonzero(as_tuple=True)
    nominal = nominal_placement(captions)
    centre, radius = nominal.centre[scenes, slots], nominal.radius[scenes, slots]
    window = _Window(centre)
    mask = _mask(pictures, captions, window, scenes, slots)
    shape = captions.shape[scenes, slots]

    def overlap(place: Tensor) -> Tensor:
        across, down, size = (part[:, None, None] for part in place.unbind(1))
        ideal = signed_distance(shape, (window.x - across) / size, (window.y - down) / size) < 0
        ideal = ideal & window.is_inside
        both = (ideal & mask).sum((1, 2))
        return both / (ideal | mask).sum((1, 2)).clamp(min=1)

    place = torch.cat([centre, radius[:, None]], 1)
    best = overlap(place)
    steps: list[Iterator[tuple[float, ...]]] = [product(_FAR, _FAR, (0.94, 1.0, 1.06))]
    steps += [product((-step, 0, step), (-step, 0, step), (-step, 0, step)) for step in _FINE]
    for index, moves in enumerate(steps):
        start = place
        for move in moves:
            change = torch.tensor(move, device=place.device)
            tried = start * torch.stack([change.new_ones(()), change.new_ones(()), change[2]]) if index == 0 else start
            tried = tried + torch.cat([change[:2], change.new_zeros(1) if index == 0 else change[2:]])
            found = overlap(tried)
            is_better = found > best
            best = torch.where(is_better, found, best)
            place = torch.where(is_better[:, None], tried, place)
    result = torch.full((len(captions), SLOTS), float("nan"), device=pictures.device)
    result[scenes, slots] = best
    return result


class _Window:
    """Pixels around the nominal centre of each of N objects.

    x (N, 1, W) and y (N, W, 1) are pixel centres, `is_inside` (N, W, W) says which lie in the picture.
    """

    def __init__(self, centre: Tensor) -> None:
        offsets = torch.arange(-_HALF, _HALF, device=centre.device)
        self.columns = centre[:, 0, None].round().long() + offsets
        self.rows = centre[:, 1, None].round().long() + offsets
        self.x, self.y = self.columns[:, None, :] + 0.5, self.rows[:, :, None] + 0.5
        in_picture = [(part >= 0) & (part < SIDE) for part in (self.rows, self.columns)]
        self.is_inside = in_picture[0][:, :, None] & in_picture[1][:, None, :]


def _mask(pictures: Tensor, captions: Captions, window: _Window, scenes: Tensor, slots: Tensor) -> Tensor:
    """(N, W, W) bool: which pixels of each window are the object."""
    grounds = draw_ground(captions, standard_palette(len(captions), pictures.device))
    rows, columns = window.rows.clamp(0, SIDE - 1)[:, :, None], window.columns.clamp(0, SIDE - 1)[:, None, :]
    pixel, ground = (part[scenes[:, None, None], :, rows, columns] for part in (pictures, grounds))
    colour = RGB.to(pictures.device)[captions.colour[scenes, slots]][:, None, None]
    is_object = _distance(pixel, colour, _LIGHT) < _distance(pixel, ground, _SHADE)
    reach = torch.tensor(_HALF_OF_COUNT, device=pictures.device)[captions.count[scenes]][:, None, None]
    offsets = torch.arange(-_HALF, _HALF, device=pictures.device)
    is_own = (offsets.abs()[None, :, None] <= reach) & (offsets.abs()[None, None, :] <= reach)
    return is_object & window.is_inside & is_own


def _distance(pixel: Tensor, colour: Tensor, brightness: tuple[float, float]) -> Tensor:
    """Squared distance of colours (..., 3) from a colour in any brightness of a range."""
    factor = ((pixel * colour).sum(-1) / colour.square().sum(-1)).clamp(*brightness)
    return (pixel - factor[..., None] * colour).square().sum(-1)
