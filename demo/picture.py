"""Draws the comparison picture: a row for each caption, a column for each way to run the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, GREY, RULE, ACCENT = "#ffffff", "#16181d", "#6b7280", "#d9dce1", "#2557d6"
TILE = 256  # pixels, the size that the demo's model draws
MARGIN, GAP, GROUP_GAP = 72, 16, 64
TITLE, SUBTITLE, GROUP, COLUMN, CAPTION, FIGURE = 44, 22, 26, 24, 26, 20  # letter heights in pixels
HEADING_HEIGHT = TITLE + 18 + SUBTITLE + 52
GROUP_HEIGHT = GROUP + 16 + 20 + COLUMN + 36  # heading, rule, names of the columns
ROW_HEIGHT = CAPTION + 20 + TILE + 14 + 2 * FIGURE + 8
ROW_GAP, NOTE_HEIGHT = 46, FIGURE + 14


@dataclass(frozen=True)
class Cell:
    """One picture with the figures below it.

    Args:
        image: (H, W, 3) uint8, any size; it is scaled to TILE.
        psnr: dB against the reference; None for the reference itself.
        error: relative error of the latent, dimensionless; None for the reference itself.
    """

    image: np.ndarray
    psnr: float | None = None
    error: float | None = None

    def figures(self) -> tuple[str, str]:
        """The two lines below the picture."""
        if self.psnr is None or self.error is None:
            return "reference", ""
        psnr = "identical" if math.isinf(self.psnr) else f"PSNR {self.psnr:.1f} dB"
        return psnr, f"latent error {self.error:.1%}"


@dataclass(frozen=True)
class Group:
    """Columns under one heading.

    Args:
        heading: what all its pictures share.
        columns: (name, remark) of each.
        rows: a list of cells, as long as `columns`, for each caption.
    """

    heading: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]

    @property
    def width(self) -> int:
        return len(self.columns) * (TILE + GAP) - GAP


def compose(
    title: str, subtitle: str, captions: Sequence[str], groups: Sequence[Group], footnotes: Sequence[str] = ()
) -> Image.Image:
    """Set captions and groups side by side on one sheet, footnotes below.

    Raises:
        ValueError: a group has not one row for each caption, or a row not one cell for each column.
    """
    for group in groups:
        if len(group.rows) != len(captions) or any(len(row) != len(group.columns) for row in group.rows):
            raise ValueError(f"Group {group.heading!r} needs {len(captions)} rows of {len(group.columns)} cells.")
    width = 2 * MARGIN + sum(group.width for group in groups) + GROUP_GAP * (len(groups) - 1)
    rows_top = MARGIN + HEADING_HEIGHT + GROUP_HEIGHT
    rows_end = rows_top + len(captions) * (ROW_HEIGHT + ROW_GAP) - ROW_GAP
    notes_height = ROW_GAP + len(footnotes) * NOTE_HEIGHT if footnotes else 0
    sheet = Image.new("RGB", (width, rows_end + notes_height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (MARGIN, MARGIN), title, TITLE, INK)
    _text(draw, (MARGIN, MARGIN + TITLE + 18), subtitle, SUBTITLE, GREY)
    row_tops = [rows_top + row * (ROW_HEIGHT + ROW_GAP) for row in range(len(captions))]
    for top, caption in zip(row_tops, captions, strict=True):
        _text(draw, (MARGIN, top), caption, CAPTION, INK)
    left = MARGIN
    for group in groups:
        _head(draw, group, left, MARGIN + HEADING_HEIGHT)
        for top, cells in zip(row_tops, group.rows, strict=True):
            for column, cell in enumerate(cells):
                _cell(sheet, draw, cell, left + column * (TILE + GAP), top + CAPTION + 20)
        left += group.width + GROUP_GAP
    if footnotes:
        draw.line([(MARGIN, rows_end + ROW_GAP), (width - MARGIN - 1, rows_end + ROW_GAP)], fill=RULE, width=2)
    for line, footnote in enumerate(footnotes):
        _text(draw, (MARGIN, rows_end + ROW_GAP + 22 + line * NOTE_HEIGHT), footnote, FIGURE, GREY)
    return sheet


def _head(draw: ImageDraw.ImageDraw, group: Group, left: int, top: int) -> None:
    _text(draw, (left, top), group.heading, GROUP, ACCENT)
    rule = top + GROUP + 16
    draw.line([(left, rule), (left + group.width - 1, rule)], fill=ACCENT, width=2)
    for column, (name, remark) in enumerate(group.columns):
        place = (left + column * (TILE + GAP), rule + 20)
        _text(draw, place, name, COLUMN, INK)
        name_width = draw.textlength(name, _font(COLUMN))
        _text(draw, (place[0] + name_width + 12, place[1] + COLUMN - FIGURE), remark, FIGURE, GREY)


def _cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, left: int, top: int) -> None:
    image = Image.fromarray(cell.image)
    if image.size != (TILE, TILE):
        image = image.resize((TILE, TILE), Image.Resampling.LANCZOS)
    sheet.paste(image, (left, top))
    draw.rectangle([left, top, left + TILE - 1, top + TILE - 1], outline=RULE)  # or white grounds melt into the paper
    first, second = cell.figures()
    is_reference = cell.psnr is None
    _text(draw, (left, top + TILE + 14), first, FIGURE, GREY if is_reference else INK)
    _text(draw, (left, top + TILE + 14 + FIGURE + 8), second, FIGURE, GREY)


def _text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: str) -> None:
    """Draw text whose capitals' top lies at `place`."""
    draw.text((place[0], place[1] + size * 0.86), text, fill=colour, font=_font(size), anchor="ls")


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)
