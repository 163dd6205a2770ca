"""The comparison picture: everything is on it, where it should be, and its letters exist."""

import math

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFont

from svdquant_pack.demo import gallery, picture, sheet
from svdquant_pack.demo.picture import GAP, MARGIN, TILE, WRONG, Cell, Group, compose

CAPTIONS = ["one", "two"]
COLUMNS = [("BF16", "2 MB"), ("W4A4", "1 MB")]


def colour(row, column, group):
    return np.broadcast_to(np.array([60 + 90 * row, 60 + 90 * column, 60 + 90 * group], np.uint8), (TILE, TILE, 3))


def group_of(number, size=TILE):
    rows = [[Cell(colour(row, column, number)[:size, :size]) for column in range(2)] for row in range(2)]
    return Group(f"group {number}", COLUMNS, rows)


def centre_of(column):
    """x of the middle of a column."""
    return MARGIN + column * (TILE + GAP) + TILE // 2


def test_every_tile_is_in_its_place():
    composed = compose("title", "subtitle", CAPTIONS, [group_of(0), group_of(1)])
    assert composed.width == 2 * MARGIN + 2 * TILE + GAP
    for column in range(2):
        strip = [composed.getpixel((centre_of(column), y)) for y in range(composed.height)]
        found = [pixel for pixel in dict.fromkeys(strip) if strip.count(pixel) >= TILE - 2 and pixel != (255,) * 3]
        assert found == [tuple(int(v) for v in colour(r, column, g)[0, 0]) for g in range(2) for r in range(2)]


def test_other_sizes_are_scaled():
    composed = compose("", "", CAPTIONS, [group_of(0, size=64)])
    assert composed.size == compose("", "", CAPTIONS, [group_of(0)]).size


def test_footnotes_add_lines_below():
    without, with_note = (compose("", "", CAPTIONS, [group_of(0)], notes) for notes in ((), ("a note",)))
    assert with_note.height > without.height
    upper = with_note.crop((0, 0, without.width, without.height - MARGIN))
    assert ImageChops.difference(upper, without.crop((0, 0, *upper.size))).getbbox() is None


def test_figures():
    assert Cell(colour(0, 0, 0)).figures() == ("reference", "")
    assert Cell(colour(0, 0, 0), 31.26, 0.0345).figures() == ("PSNR 31.3 dB", "latent error 3.5%")
    assert Cell(colour(0, 0, 0), math.inf, 0.0).figures() == ("identical", "latent error 0.0%")


def test_a_group_that_does_not_fit_is_refused():
    short = Group("g", COLUMNS, [[Cell(colour(0, 0, 0))]])
    with pytest.raises(ValueError, match="2 rows of 2 cells"):
        compose("", "", CAPTIONS, [short])


def test_text_fits_and_its_letters_exist():
    """The built-in font has few letters; a missing one is drawn as a box."""
    font = ImageFont.load_default(size=picture.SUBTITLE)
    texts = [
        sheet.TITLE,
        sheet.SUBTITLE,
        *sheet.NOTES,
        *(subject.caption for subject in gallery.SUBJECTS),
    ]
    box = font.getmask("\uffff")
    for letter in set("".join(texts)) - {" "}:
        assert (font.getmask(letter).size, bytes(font.getmask(letter))) != (box.size, bytes(box)), letter
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    width = len(gallery.COLUMNS) * (TILE + GAP) - GAP
    assert max(draw.textlength(text, font) for text in texts) < width


def test_a_wrong_caption_stands_out():
    rows = [[Cell(colour(0, 0, 0), 20.0, 0.3, "wrong: shape", is_right) for is_right in (True, False)]]
    composed = compose("", "", ["one"], [Group("g", COLUMNS, rows)])
    red = tuple(int(WRONG[i : i + 2], 16) for i in (1, 3, 5))
    halves = [composed.crop((left, 0, left + TILE, composed.height)) for left in (MARGIN, MARGIN + TILE + GAP)]
    assert [red in {c for _, c in half.getcolors(1 << 20)} for half in halves] == [False, True]
