"""Draws the comparison picture: a row for each caption, a column for each way to run the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, GREY, RULE, ACCENT, WRONG = "#ffffff", "#16181d", "#6b7280", "#d9dce1", "#2557d6", "#c0392b"
TILE = 256  # pixels, the size that the demo's model draws
MARGIN, GAP, GROUP_GAP = 72, 16, 64
TITLE, SUBTITLE, GROUP, COLUMN, CAPTION, FIGURE = 44, 22, 26, 24, 26, 20  # letter heights in pixels
HEADING_HEIGHT = TITLE + 18 + SUBTITLE + 52
GROUP_HEIGHT = GROUP + 16 + 20 + COLUMN + 36  # heading, rule, names of the columns
ROW_HEIGHT = CAPTION + 20 + TILE + 14 + 3 * FIGURE + 16
ROW_GAP, NOTE_HEIGHT = 46, FIGURE + 14


@dataclass(frozen=True)
class Cell:
    """One picture with the figures below it.

    Args:
        image: (H, W, 3) uint8, any size; it is scaled to TILE.
        psnr: dB against the reference; None for the reference itself.
        error: relative error of the latent, dimensionless; None for the reference itself.
        verdict: whether the caption was drawn, in words. is_right: the same as yes or no.
    """

    image: np.ndarray
    psnr: float | None = None
    error: float | None = None
    verdict: str = ""
    is_right: bool = True

    def figures(self) -> tuple[str, str]:
        """The first two lines below the picture."""
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
    """Set the groups below each other on one sheet, each with all captions, and footnotes at the end.

    Raises:
        ValueError: a group has not one row for each caption, or a row not one cell for each column.
    """
    for group in groups:
        if len(group.rows) != len(captions) or any(len(row) != len(group.columns) for row in group.rows):
            raise ValueError(f"Group {group.heading!r} needs {len(captions)} rows of {len(group.columns)} cells.")
    width = 2 * MARGIN + max(group.width for group in groups)
    rows_height = len(captions) * (ROW_HEIGHT + ROW_GAP) - ROW_GAP
    group_height = GROUP_HEIGHT + rows_height
    rows_end = MARGIN + HEADING_HEIGHT + len(groups) * (group_height + GROUP_GAP) - GROUP_GAP
    notes_height = ROW_GAP + len(footnotes) * NOTE_HEIGHT if footnotes else 0
    sheet = Image.new("RGB", (width, rows_end + notes_height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (MARGIN, MARGIN), title, TITLE, INK)
    _text(draw, (MARGIN, MARGIN + TITLE + 18), subtitle, SUBTITLE, GREY)
    for number, group in enumerate(groups):
        top = MARGIN + HEADING_HEIGHT + number * (group_height + GROUP_GAP)
        _head(draw, group, MARGIN, top)
        for row, (caption, cells) in enumerate(zip(captions, group.rows, strict=True)):
            row_top = top + GROUP_HEIGHT + row * (ROW_HEIGHT + ROW_GAP)
            _text(draw, (MARGIN, row_top), caption, CAPTION, INK)
            for column, cell in enumerate(cells):
                _cell(sheet, draw, cell, MARGIN + column * (TILE + GAP), row_top + CAPTION + 20)
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
    lines = [(second, GREY), (cell.verdict, GREY if cell.is_right else WRONG)]
    for number, (line, colour) in enumerate(((text, c) for text, c in lines if text), start=1):
        _text(draw, (left, top + TILE + 14 + number * (FIGURE + 8)), line, FIGURE, colour)


def _text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: str) -> None:
    """Draw text whose capitals' top lies at `place`."""
    draw.text((place[0], place[1] + size * 0.86), text, fill=colour, font=_font(size), anchor="ls")


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)
