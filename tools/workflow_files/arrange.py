"""Finds places for the nodes of a workflow at which no wire runs behind a node that it does not belong to.

The columns are those of layout.columns_of_stage; what is tried is the order in a column, and how far down it starts.
"""

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np

from .layout import COLUMN_GAP, HEADING, MARGIN, ROW_GAP, STAGE_GAP, TITLE, Box, columns_of_stage

STARTS = (0, 60, 120, 190, 260, 340, 430, 520, 640, 780)  # pixels below the heading at which a column may begin
POINTS = 32  # of a wire, that are looked at
MOST_ORDERS = 24  # of a column; longer ones change by swapping two
SLOT_HEIGHT, SLOT_SHIFT = 20, 0.7  # where the page draws a slot, from the node's upper edge
PASSES = 4
TRIES = 8  # where a wire stays hidden; two otherwise
HIDDEN, BACKWARDS = 1000.0, 400.0  # cost of a wire behind a node, and of one that runs to the left


@dataclass(frozen=True)
class Wire:
    """From output `origin_slot` of one node to input `target_slot` of another."""

    origin: int
    origin_slot: int
    target: int
    target_slot: int


Places = dict[int, tuple[int, int]]


def wire_ends(boxes: dict[int, Box], wires: list[Wire], places: Places) -> np.ndarray:
    """(wires, 2, 2): where each wire starts and ends, x and y."""
    found = []
    for wire in wires:
        (x, y), (to_x, to_y) = places[wire.origin], places[wire.target]
        start = (x + boxes[wire.origin].width, y + (wire.origin_slot + SLOT_SHIFT) * SLOT_HEIGHT)
        found.append((start, (to_x, to_y + (wire.target_slot + SLOT_SHIFT) * SLOT_HEIGHT)))
    return np.array(found, dtype=float).reshape(-1, 2, 2)


def wire_points(ends: np.ndarray) -> np.ndarray:
    """(wires, points, 2): points of the curves that the page draws between slots."""
    start, end = ends[:, 0], ends[:, 1]
    reach = np.linalg.norm(end - start, axis=1, keepdims=True) * 0.25 * np.array([1.0, 0.0])
    t = np.arange(1, POINTS)[:, None] / POINTS
    parts = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
    controls = (start, start + reach, end - reach, end)
    return np.sum([part * control[:, None] for part, control in zip(parts, controls, strict=True)], axis=0)


def hidden_wires(boxes: dict[int, Box], wires: list[Wire], places: Places) -> list[tuple[Wire, int]]:
    """(wire, node) of each wire that runs behind a node, its own two included."""
    hidden = _behind(boxes, wire_ends(boxes, wires, places), places)
    numbers = list(boxes)
    return [(wires[i], numbers[j]) for i, j in zip(*np.nonzero(hidden), strict=True)]


def _behind(boxes: dict[int, Box], ends: np.ndarray, places: Places) -> np.ndarray:
    """(wires, nodes): whether a wire runs behind a node."""
    frames = np.array([(*places[n], places[n][0] + box.width, places[n][1] + box.height) for n, box in boxes.items()])
    left, top, right, bottom = (frames[:, side] for side in range(4))
    points = wire_points(ends)
    x, y = points[..., 0, None], points[..., 1, None]
    return np.any((x > left + 3) & (x < right - 3) & (y > top - TITLE) & (y < bottom), axis=1)


class Arrangement:
    """Columns of nodes, and what is open about them: the order in each and where it starts.

    Args:
        below: the stage that begins a second row; "" for one row.
        first_top: where the first stage begins from above, below a note.
    """

    def __init__(self, boxes: list[Box], wires: list[Wire], left: int, below: str = "", first_top: int = 0):
        self.first_top = first_top
        self.boxes, self.wires = {box.id: box for box in boxes}, wires
        used = {source for box in boxes for source in box.sources}
        self.columns: list[list[int]] = []
        self.starts: list[int] = []
        self.lefts: list[int] = []
        self.rows: list[int] = []
        self.in_first: list[bool] = []
        first, row = left, 0
        for stage in dict.fromkeys(box.stage for box in boxes):
            if stage == below:
                left, row = first, 1
            x = left + MARGIN
            for column in columns_of_stage([box for box in boxes if box.stage == stage], used):
                self.columns.append([box.id for box in column])
                self.starts.append(0)
                self.lefts.append(x)
                self.rows.append(row)
                self.in_first.append(stage == boxes[0].stage)
                x += max(box.width for box in column) + COLUMN_GAP
            left = x - COLUMN_GAP + MARGIN + STAGE_GAP

    def places(self) -> Places:
        found: Places = {}
        top = 0
        for row in sorted(set(self.rows)):
            bottom = top
            for index, column in enumerate(self.columns):
                if self.rows[index] != row:
                    continue
                y = top + HEADING + self.starts[index] + self.first_top * self.in_first[index]
                for number in column:
                    found[number] = (self.lefts[index], y + TITLE)
                    y += TITLE + self.boxes[number].height + ROW_GAP
                bottom = max(bottom, y)
            top = bottom + STAGE_GAP
        return found

    def cost(self) -> float:
        """Hidden wires above all, then wires that run backwards, then their length and the height of it all."""
        places = self.places()
        ends = wire_ends(self.boxes, self.wires, places)
        total = max(y + self.boxes[n].height for n, (_, y) in places.items()) / 10
        if len(ends):
            across, down = (ends[:, 1] - ends[:, 0]).T
            total += HIDDEN * _behind(self.boxes, ends, places).sum() + BACKWARDS * (across <= 0).sum()
            total += (np.hypot(across, down) / 50 + np.abs(down) / 25).sum()
        return float(total)

    def shuffle(self, turn: int) -> None:
        """Begin from another order: as described, reversed, then random ones."""
        if turn == 1:
            self.columns = [column[::-1] for column in self.columns]
        if turn > 1:
            draw = random.Random(turn)
            for column in self.columns:
                draw.shuffle(column)
            self.starts = [draw.choice(STARTS) for _ in self.columns]

    def improve(self) -> None:
        """Change one column after the other while that helps."""
        best = self.cost()
        for _ in range(PASSES):
            before = best
            for index in range(len(self.columns)):
                best = self._improve_column(index, best)
            if best == before:
                return

    def _improve_column(self, index: int, best: float) -> float:
        column = self.columns[index]
        chosen = (list(column), self.starts[index])
        for order in _orders(column):
            for start in STARTS:
                self.columns[index], self.starts[index] = list(order), start
                cost = self.cost()
                if cost < best - 1e-9:
                    best, chosen = cost, (list(order), start)
        self.columns[index], self.starts[index] = chosen
        return best


def _orders(column: list[int]):
    if math.factorial(len(column)) <= MOST_ORDERS:
        yield from itertools.permutations(column)
        return
    yield column
    for i, j in itertools.combinations(range(len(column)), 2):
        swapped = list(column)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        yield swapped


def arrange(boxes: list[Box], wires: list[Wire], left: int, below: str = "", first_top: int = 0) -> Places:
    """Places for all nodes.

    Args:
        left: where the first stage begins. below: the stage that begins a second row.
        first_top: where the first stage begins from above.
    """
    tried = []
    for turn in range(TRIES):  # a search that only goes downhill depends on where it begins
        arrangement = Arrangement(boxes, wires, left, below, first_top)
        arrangement.shuffle(turn)
        arrangement.improve()
        tried.append((arrangement.cost(), turn, arrangement.places()))
        if turn and min(tried)[0] < HIDDEN:
            break
    return min(tried)[2]
