"""A line chart with a logarithmic scale upwards, drawn with Pillow: figures with intervals at a few places."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1500, 900
LEFT, RIGHT, TOP, BOTTOM = 140, 60, 150, 120
PAPER, INK, GREY, RULE = "#ffffff", "#16181d", "#6b7280", "#e3e5ea"
COLOURS = ("#8a8f99", "#d98a1f", "#2557d6", "#1a936f", "#b5338a", "#c0392b")
TITLE, NOTE, TEXT = 34, 22, 24  # letter heights
DOT, CAP = 7, 8
TICKS = (1, 2, 5)  # of each power of ten


@dataclass(frozen=True)
class Series:
    """One line.

    Args:
        label: what it is.
        points: place -> mean, low and high end of its interval; fractions, all above 0.
    """

    label: str
    points: Mapping[int, tuple[float, float, float]]


@dataclass(frozen=True)
class Chart:
    """What is drawn.

    Args:
        axis: what the places are. names: of the places, from left to right. places: keys of the points.
        lines: (label, height) of dashed lines across.
    """

    title: str
    note: str
    axis: str
    names: Sequence[str]
    places: Sequence[int]
    series: Sequence[Series]
    lines: Sequence[tuple[str, float]] = ()

    def draw(self) -> Image.Image:
        """The chart as a picture of WIDTH x HEIGHT; heights are written in percent."""
        image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
        draw = ImageDraw.Draw(image)
        draw.text((LEFT, 36), self.title, fill=INK, font=_font(TITLE))
        draw.text((LEFT, 36 + TITLE + 12), self.note, fill=GREY, font=_font(NOTE))
        self._axes(draw)
        for label, height in self.lines:
            self._dashed(draw, label, height)
        for series, colour in zip(self.series, COLOURS, strict=False):
            self._line(draw, series, colour)
        self._legend(draw)
        return image

    def _range(self) -> tuple[float, float]:
        """Logarithms of the lowest and the highest value shown."""
        values = [v for s in self.series for point in s.points.values() for v in point if v > 0]
        values += [height for _, height in self.lines if height > 0]
        if not values:
            return -2.0, 0.0
        low, high = math.log10(min(values)), math.log10(max(values))
        return low - 0.08, max(high, low + 0.3) + 0.08

    def _x(self, place: int) -> float:
        step = (WIDTH - LEFT - RIGHT) / len(self.places)
        return LEFT + (list(self.places).index(place) + 0.5) * step

    def _y(self, value: float) -> float:
        low, high = self._range()
        return HEIGHT - BOTTOM - (math.log10(value) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def _axes(self, draw: ImageDraw.ImageDraw) -> None:
        low, high = self._range()
        for power in range(math.floor(low), math.ceil(high) + 1):
            for tick in TICKS:
                value = tick * 10.0**power
                if low <= math.log10(value) <= high:
                    y = self._y(value)
                    draw.line((LEFT, y, WIDTH - RIGHT, y), fill=RULE, width=2)
                    draw.text((LEFT - 16, y), f"{100 * value:g} %", fill=GREY, font=_font(NOTE), anchor="rm")
        draw.line((LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM), fill=GREY, width=2)
        for place, name in zip(self.places, self.names, strict=True):
            draw.text((self._x(place), HEIGHT - BOTTOM + 14), name, fill=INK, font=_font(TEXT), anchor="ma")
        middle = (LEFT + WIDTH - RIGHT) / 2
        draw.text((middle, HEIGHT - BOTTOM + 54), self.axis, fill=GREY, font=_font(NOTE), anchor="ma")

    def _dashed(self, draw: ImageDraw.ImageDraw, label: str, height: float) -> None:
        y = self._y(height)
        for x in range(LEFT, WIDTH - RIGHT, 24):
            draw.line((x, y, x + 12, y), fill=INK, width=2)
        draw.text((WIDTH - RIGHT, y + 6), label, fill=INK, font=_font(NOTE), anchor="ra")

    def _line(self, draw: ImageDraw.ImageDraw, series: Series, colour: str) -> None:
        points = [(self._x(p), *(self._y(v) for v in series.points[p])) for p in self.places if p in series.points]
        draw.line([(x, y) for x, y, _, _ in points], fill=colour, width=4)
        for x, y, low, high in points:
            draw.line((x, low, x, high), fill=colour, width=2)
            for end in (low, high):
                draw.line((x - CAP, end, x + CAP, end), fill=colour, width=2)
            draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=colour)

    def _legend(self, draw: ImageDraw.ImageDraw) -> None:
        x = LEFT
        for series, colour in zip(self.series, COLOURS, strict=False):
            draw.line((x, TOP - 16, x + 36, TOP - 16), fill=colour, width=6)
            draw.text((x + 46, TOP - 16), series.label, fill=INK, font=_font(NOTE), anchor="lm")
            x += 46 + draw.textlength(series.label, _font(NOTE)) + 36


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
