"""Draws reference, picture and difference map side by side, with their figures, as a ComfyUI IMAGE."""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

BACKGROUND, INK, GREY, RULE = (255, 255, 255), (24, 27, 33), (100, 106, 116), (208, 211, 216)
# Colours of the difference map from none to full, dark to light so that it can be read without colours, too.
HEAT = ((0, 0, 0), (70, 10, 100), (190, 40, 90), (250, 140, 40), (255, 255, 230))
NARROWEST = 320  # pixels of a panel, nearly: figures need them
LETTERS = (16, 40)  # smallest and largest height of letters
NARROWEST_CELL = NARROWEST * 2 // 3  # pixels around a panel that enlarging would make too high
HIGHEST = 2048  # pixels of a panel that was enlarged
MOST_PIXELS = 1 << 22  # of a cell that was widened
LONGEST_NAME = 1000  # letters that are looked at; none is narrower than a pixel or two
WIDE = 2.0  # from this ratio of width to height on, panels stand below each other


@dataclass(frozen=True)
class Pair:
    """Two pictures and what was measured.

    Args:
        reference, picture: (H, W, 3) float32 in 0...1.
        difference: (H, W) float32, mean over the colours of the absolute difference.
        psnr: dB. ssim, mean_difference, largest_difference: dimensionless, of a full range of 1.
    """

    reference: Tensor
    picture: Tensor
    difference: Tensor
    psnr: float
    ssim: float
    mean_difference: float
    largest_difference: float

    def figures(self) -> str:
        """The figures in one line."""
        if math.isinf(self.psnr):
            return "identical"
        return f"PSNR {self.psnr:.2f} dB   SSIM {self.ssim:.4f}   mean difference {percent(self.mean_difference)}"


def percent(fraction: float) -> str:
    """A fraction of the full range in words, with digits for small ones."""
    return f"{100 * fraction:.3g} %"


def heat_map(difference: Tensor, scale: float) -> Tensor:
    """Colour differences of 0...1/scale: (...) float -> (..., 3) float32 in 0...1; larger ones take the last colour."""
    stops = torch.tensor(HEAT, dtype=torch.float32) / 255
    place = (difference.float() * scale).nan_to_num(1.0).clamp(0, 1) * (len(HEAT) - 1)
    left = place.floor().clamp(max=len(HEAT) - 2).long()
    return torch.lerp(stops[left], stops[left + 1], (place - left)[..., None])


def draw_pair(pair: Pair, names: tuple[str, str], scale: float) -> Tensor:
    """One sheet: three panels, a name above each, figures and the colours' meaning below.

    Args:
        names: of reference and picture.
        scale: what differences are multiplied by before they are coloured.

    Returns:
        (H', W', 3) float32 in 0...1; of pairs of one size all sheets have one size.
    """
    height, width = pair.reference.shape[:2]
    # whole pixels, so that small pictures stay what they are
    zoom = max(1, min(round(NARROWEST / width), HIGHEST // height))
    panels = [_to_image(p, zoom) for p in (pair.reference, pair.picture, heat_map(pair.difference, scale))]
    panel_width, height = panels[0].size
    width = max(panel_width, min(NARROWEST_CELL, MOST_PIXELS // height))
    letters = min(max(width // 26, LETTERS[0]), LETTERS[1])
    line, gap = round(letters * 1.7), letters
    below = width > WIDE * height
    columns, rows = (1, 3) if below else (3, 1)
    sheet_width = columns * (width + gap) + gap
    sheet = Image.new("RGB", (sheet_width, rows * (line + height) + 2 * line + 2 * gap), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=letters)
    titles = (*names, f"difference x {scale:g}")
    for index, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        left = gap if below else gap + index * (width + gap)
        top = gap // 2 + (index * (line + height) if below else 0)
        draw.text((left, top), _shorten(draw, title, font, width), fill=INK, font=font)
        sheet.paste(panel, (left, top + line))
        draw.rectangle((left - 1, top + line - 1, left + panel_width, top + line + height), outline=RULE)
    top = gap + rows * (line + height)
    figures = _shorten(draw, pair.figures(), font, sheet_width - 2 * gap)
    draw.text((gap, top), figures, fill=INK, font=font)
    if not below:
        _legend(sheet, draw, (gap + 2 * (width + gap), top, width, letters), scale, font)
        largest = f"largest difference {percent(pair.largest_difference)}"
        draw.text((gap, top + line), largest, fill=GREY, font=font)
    else:
        _legend(sheet, draw, (gap, top + line, min(width, 16 * letters), letters), scale, font)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)


def _legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], scale: float, font) -> None:
    """The colours from 0 to the difference that takes the last one; box: left, top, width, letter height."""
    left, top, width, letters = box
    strip = heat_map(torch.linspace(0, 1, width).expand(letters, width), 1.0)
    sheet.paste(_to_image(strip, 1), (left, top))
    full = f"{percent(1 / scale)}{' and more' if scale > 1 else ''}"
    draw.text((left, top + round(letters * 1.7)), "0", fill=GREY, font=font)
    draw.text((left + width, top + round(letters * 1.7)), full, fill=GREY, font=font, anchor="ra")


def _to_image(pixels: Tensor, zoom: int) -> Image.Image:
    image = Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().cpu().numpy())
    return image if zoom == 1 else image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _shorten(draw: ImageDraw.ImageDraw, text: str, font, width: int) -> str:
    """One line that fits, whatever a user named the picture."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[:LONGEST_NAME])
    if len(text) <= LONGEST_NAME and draw.textlength(line, font) <= width:
        return line
    fits = bisect_left(range(len(line)), True, key=lambda n: draw.textlength(line[: n + 1] + "…", font) > width)
    return line[:fits] + "…"
