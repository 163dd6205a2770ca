"""Draws scenes from signed distances, thousands in a second on a GPU: the pictures that everything here learns from."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...demo.captions import SLOTS, STYLES, Captions
from ...demo.scenes import COLOURS, SIZES
from .shapes import signed_distance

SIDE = 256  # pixels; all lengths below are in pixels of this size
RGB = torch.tensor(
    [
        [0.88, 0.13, 0.15],
        [0.98, 0.53, 0.08],
        [0.98, 0.84, 0.12],
        [0.13, 0.64, 0.24],
        [0.13, 0.33, 0.90],
        [0.56, 0.18, 0.76],
        [0.97, 0.97, 0.97],
        [0.08, 0.08, 0.09],
    ]
)
GROUND_RGB = 0.5 * RGB + 0.5  # pale, but for the last two
GROUND_RGB[-2:] = torch.tensor([[0.96], [0.24]])
BLACK = COLOURS.index("black")
RADIUS = {"small": 24.0, "large": 38.5}  # of three objects; fewer are larger by
SCALE_OF_COUNT = (0.0, 1.55, 1.25, 1.0)
_RADIUS_PLAY, _PLACE_PLAY = 1.5, 5.0
_TILT = 0.35  # radians
_BAR = 8  # height of a stripe of a striped object
_CENTRES = torch.tensor(
    [
        [[128, 128]] * 3,
        [[74, 74]] * 3,
        [[182, 74]] * 3,
        [[74, 182]] * 3,
        [[182, 182]] * 3,
        [[68, 128], [188, 128], [0, 0]],
        [[128, 68], [128, 188], [0, 0]],
        [[45, 128], [128, 128], [211, 128]],
        [[128, 45], [128, 128], [128, 211]],
    ],
    dtype=torch.float32,
)  # by layout and slot


@dataclass(frozen=True)
class Placement:
    """Where the objects of B scenes stand.

    Args:
        centre: (B, 3, 2) x and y, pixels.
        radius: (B, 3), pixels.
    """

    centre: Tensor
    radius: Tensor

    def __getitem__(self, index: slice | Tensor) -> "Placement":
        return Placement(self.centre[index], self.radius[index])


@dataclass(frozen=True)
class Palette:
    """Colours of B scenes, in [0, 1]; object and ground are (B, 8, 3)."""

    object: Tensor
    ground: Tensor


def nominal_placement(captions: Captions) -> Placement:
    """Where the captions put their objects, without play."""
    device = captions.sentence.device
    radius = torch.tensor([RADIUS[size] for size in SIZES], device=device)[captions.size]
    scale = torch.tensor(SCALE_OF_COUNT, device=device)[captions.count]
    return Placement(_CENTRES.to(device)[captions.layout], radius * scale[:, None])


def place(captions: Captions, generator: torch.Generator) -> Placement:
    """Place the objects with a little play in place and size."""
    nominal = nominal_placement(captions)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(captions), *shape, device=generator.device, generator=generator) * 2 - 1

    scale = torch.tensor(SCALE_OF_COUNT, device=generator.device)[captions.count]
    radius = nominal.radius + _RADIUS_PLAY * uniform(SLOTS) * scale[:, None]
    return Placement(nominal.centre + _PLACE_PLAY * uniform(SLOTS, 2), radius)


def standard_palette(count: int, device: torch.device | str) -> Palette:
    """The eight colours that captions name."""
    return Palette(*(colours.to(device).expand(count, -1, -1) for colours in (RGB, GROUND_RGB)))


def random_palette(count: int, generator: torch.Generator, share: float) -> Palette:
    """The standard colours, but random ones in a `share` of the scenes."""
    standard = standard_palette(count, generator.device)
    is_random = torch.rand(count, 1, 1, device=generator.device, generator=generator) < share

    def mix(colours: Tensor) -> Tensor:
        return torch.where(is_random, torch.rand(colours.shape, device=colours.device, generator=generator), colours)

    return Palette(mix(standard.object), mix(standard.ground))


def draw_ground(captions: Captions, palette: Palette, size: int = SIDE, is_night: Tensor | None = None) -> Tensor:
    """Draw the grounds alone, (B, 3, size, size) in [0, 1]; with `is_night` (B,) bool some are dark in any case."""
    x, y = _axes(size, captions.sentence.device)
    ground = captions.ground if is_night is None else torch.where(is_night, BLACK, captions.ground)
    dots = torch.hypot(x % 32 - 16, y % 32 - 16) - 7.5
    patterns = [
        torch.zeros(1, size, size, device=x.device),
        (0.5 + 4 * torch.sin(2 * math.pi * (x + y) / 45.2)).clamp(0, 1),
        _cover(dots, 1.5 * SIDE / size),
        (0.5 + 5 * torch.sin(math.pi * x / 32) * torch.sin(math.pi * y / 32)).clamp(0, 1),
    ]
    pattern = torch.stack(patterns, 1)[0][captions.texture][:, None]
    colour = palette.ground[torch.arange(len(ground), device=x.device), ground][:, :, None, None]
    is_dark = (ground == BLACK)[:, None, None, None]
    return torch.where(is_dark, colour + 0.16 * pattern, colour * (1 - 0.2 * pattern)).clamp(0, 1)


def render(
    captions: Captions,
    placement: Placement,
    style: Tensor | str = "filled",
    palette: Palette | None = None,
    size: int = SIDE,
) -> Tensor:
    """Draw scenes.

    Args:
        style: one of STYLES for all, or (B,) int64 indices into them.
        size: pixels of the square pictures; 256 or a divisor of it.

    Returns:
        (B, 3, size, size) fp32 in [0, 1]
    """
    device = captions.sentence.device
    if isinstance(style, str):
        style = torch.full((len(captions),), STYLES.index(style), device=device)
    palette = palette or standard_palette(len(captions), device)

    def has(*names: str) -> Tensor:
        wanted = torch.tensor([STYLES.index(name) for name in names], device=device)
        return torch.isin(style, wanted)[:, None, None]

    x, y = _axes(size, device)
    pixel = SIDE / size
    picture = draw_ground(captions, palette, size, has("night").flatten())
    tilt = has("tilted", "night") * _TILT
    bars = (y % (2 * _BAR) < _BAR).float()
    for slot in range(SLOTS):
        is_drawn = captions.is_drawn[:, slot, None, None].float()
        radius = placement.radius[:, slot, None, None]
        left, top = (placement.centre[:, slot, axis, None, None] for axis in (0, 1))

        def distance(across: Tensor, down: Tensor, shape=captions.shape[:, slot], radius=radius) -> Tensor:
            across, down = across / radius, down / radius
            turned = (tilt.cos() * across + tilt.sin() * down, tilt.cos() * down - tilt.sin() * across)
            return signed_distance(shape, *turned) * radius

        inside = distance(x - left, y - top)
        shadow = torch.sigmoid(-distance(x - left - 4, y - top - 5) / 2.5) * 0.32 * is_drawn
        shadow = torch.where(has("outlined", "black border", "flat"), 0.0, shadow)[:, None]
        colour = palette.object[torch.arange(len(captions), device=device), captions.colour[:, slot]][:, :, None, None]
        is_white = (colour.amin(1, keepdim=True) > 0.9).float()
        other = torch.where(is_white > 0, 0.62 * colour, 0.35 * colour + 0.65)  # second tone of a striped object
        base = torch.where(has("striped")[:, None], bars * colour + (1 - bars) * other, colour)
        light = 1 - 0.14 * ((x - left) * 0.6 + (y - top) * 0.8) / radius
        rim = 1 - 0.38 * _cover(-inside - 2.5, 2 * pixel)
        body = (base * (light * rim)[:, None] + 0.03 * light[:, None]).clamp(0, 1)
        body = torch.where(has("outlined", "white border", "black border", "flat")[:, None], colour, body)
        is_border = (inside > -0.14 * radius)[:, None]
        body = torch.where(is_border & has("white border")[:, None], 0.97, body)
        body = torch.where(is_border & has("black border")[:, None], 0.06, body)
        stroke = (0.22 * radius).clamp(5, 9)
        contour = (inside + stroke / 2).abs() - stroke / 2
        cover = _cover(torch.where(has("outlined"), contour, inside), 1.5 * pixel)[:, None] * is_drawn[:, None]
        picture = picture * (1 - shadow) * (1 - cover) + body * cover
    return picture.clamp(0, 1)


def _axes(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x (1, 1, size) and y (1, size, 1) of pixel centres."""
    centres = (torch.arange(size, device=device) + 0.5) * (SIDE / size)
    return centres[None, None, :], centres[None, :, None]


def _cover(distance: Tensor, width: float) -> Tensor:
    """How much of a pixel lies inside an edge that is `width` pixels soft."""
    return (0.5 - distance / width).clamp(0, 1)
