"""A bar chart of the error of each quantized part, as a ComfyUI IMAGE."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..svdq_core.quantize import PartReport

WIDTH, HEIGHT, MARGIN = 1280, 480, 64
BACKGROUND, INK, GRID, BAR = (255, 255, 255), (40, 44, 52), (225, 228, 232), (66, 120, 200)
WORST = (214, 84, 60)
NAMED = 3  # the worst parts are drawn in another colour and named


def draw_errors(reports: list[PartReport], title: str) -> Tensor:
    """Bars in the order of the model, the worst ones named.

    Returns:
        (1, HEIGHT, WIDTH, 3) float32 in 0...1.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw, font, small = ImageDraw.Draw(image), ImageFont.load_default(size=18), ImageFont.load_default(size=13)
    draw.text((MARGIN, 16), title, fill=INK, font=font)
    top, bottom, left, right = MARGIN + 16, HEIGHT - MARGIN, MARGIN, WIDTH - 24
    largest = max((r.relative_error for r in reports), default=0.0) or 1.0
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = bottom - fraction * (bottom - top)
        draw.line((left, y, right, y), fill=GRID)
        draw.text((12, y - 8), f"{100 * fraction * largest:.1f} %", fill=INK, font=small)
    worst = sorted(reports, key=lambda r: r.relative_error, reverse=True)[:NAMED]
    step = (right - left) / max(len(reports), 1)
    for index, report in enumerate(reports):
        x = left + index * step
        y = bottom - report.relative_error / largest * (bottom - top)
        draw.rectangle((x, y, x + max(step * 0.8, 1), bottom), fill=WORST if report in worst else BAR)
    names = ", ".join(f"{r.layer} {100 * r.relative_error:.1f} %" for r in worst)
    draw.text(
        (left, bottom + 12), f"{len(reports)} parts in the order of the model; worst: {names}", fill=INK, font=small
    )
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]
