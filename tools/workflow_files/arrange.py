"""Finds places for the nodes of a workflow at which no wire runs behind a node that it does not belong to.

The columns are those of layout.columns_of_stage. First the order in each column is tried, then every node is moved up
and down until its wires are short and straight.
"""

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np

from .layout import COLUMN_GAP, HEADING, MARGIN, ROW_GAP, STAGE_GAP, TITLE, Box, columns_of_stage

STARTS = (0, 120, 260, 420)  # pixels below the heading at which a column may begin, while orders are tried
STEP = 20  # pixels: where a node may stand at last
POINTS = 32  # of a wire, that are looked at
MOST_ORDERS = 24  # of a column; longer ones change by swapping two
SLOT_HEIGHT, SLOT_SHIFT = 20, 0.7  # where the page draws a slot, from the node's upper edge
PASSES = 3
TRIES = 8  # where a wire stays hidden; two otherwise
HIDDEN, BACKWARDS = 1000.0, 400.0  # cost of a wire behind a node, and of one that runs to the left
TOO_TALL = 4.0  # of a pixel beyond the tallest column
AIR = 12  # pixels that a wire keeps from nodes


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


def _behind(boxes: dict[int, Box], ends: np.ndarray, places: Places, air: int = 0) -> np.ndarray:
    """(wires, nodes): whether a wire runs behind a node, or nearer than `air` above or below it."""
    frames = np.array([(*places[n], places[n][0] + box.width, places[n][1] + box.height) for n, box in boxes.items()])
    left, top, right, bottom = (frames[:, side] for side in range(4))
    points = wire_points(ends)
    x, y = points[..., 0, None], points[..., 1, None]
    return np.any((x > left + 3) & (x < right - 3) & (y > top - TITLE - air) & (y < bottom + air), axis=1)


class Arrangement:
    """Columns of nodes, and what is open about them: the order in each, and how far down each node stands.

    Args:
        below: the stage that begins a second row, to the right of the first stage; "" for one row.
    """

    def __init__(self, boxes: list[Box], wires: list[Wire], below: str = ""):
        self.boxes, self.wires = {box.id: box for box in boxes}, wires
        used = {source for box in boxes for source in box.sources}
        self.columns: list[list[int]] = []
        self.starts: list[int] = []
        self.rows: list[int] = []  # of each column; -1: beside both rows
        self.lefts: list[int] = []
        stages = list(dict.fromkeys(box.stage for box in boxes))
        left = second_left = 0
        row = 0
        for stage in stages:
            if stage == below:
                left, row = second_left, 1
            x = left + MARGIN
            for column in columns_of_stage([box for box in boxes if box.stage == stage], used):
                self.columns.append([box.id for box in column])
                self.starts.append(0)
                self.lefts.append(x)
                self.rows.append(-1 if below and stage == stages[0] else row)
                x += max(box.width for box in column) + COLUMN_GAP
            left = x - COLUMN_GAP + MARGIN + STAGE_GAP
            if stage == stages[0]:
                second_left = left
        self.tops, self.bottoms = self._rows()
        self.y: dict[int, int] = {}
        self.stack()

    def _rows(self) -> tuple[dict[int, int], dict[int, int]]:
        """Where each row begins, and where its tallest column ends."""
        tops, bottoms, top = {}, {}, 0
        for row in sorted(set(self.rows) - {-1}):
            columns = [c for c, r in zip(self.columns, self.rows, strict=True) if r == row]
            tallest = max(sum(TITLE + self.boxes[n].height + ROW_GAP for n in column) - ROW_GAP for column in columns)
            tops[row], bottoms[row] = top + HEADING, top + HEADING + tallest
            top = bottoms[row] + MARGIN + STAGE_GAP
        tops[-1], bottoms[-1] = min(tops.values()), max(bottoms.values())
        return tops, bottoms

    def stack(self) -> None:
        """One node right below the other in each column, from where the column begins."""
        for column, start, row in zip(self.columns, self.starts, self.rows, strict=True):
            y = self.tops[row] + start
            for number in column:
                self.y[number] = y + TITLE
                y += TITLE + self.boxes[number].height + ROW_GAP

    def places(self) -> Places:
        return {n: (x, self.y[n]) for x, column in zip(self.lefts, self.columns, strict=True) for n in column}

    def cost(self) -> float:
        """Hidden wires above all, then wires that run backwards, then their length and what stands too low."""
        places = self.places()
        ends = wire_ends(self.boxes, self.wires, places)
        total = 0.0
        for column, row in zip(self.columns, self.rows, strict=True):
            last = column[-1]
            total += TOO_TALL * max(self.y[last] + self.boxes[last].height - self.bottoms[row], 0)
            total += (self.y[column[0]] - TITLE - self.tops[row]) / 40
        if len(ends):
            across, down = (ends[:, 1] - ends[:, 0]).T
            total += HIDDEN * _behind(self.boxes, ends, places).sum() + BACKWARDS * (across <= 0).sum()
            total += 3 * _behind(self.boxes, ends, places, AIR).sum()
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
        self.stack()

    def improve(self) -> None:
        """Change one column after the other while that helps, then one node after the other."""
        for change, many in ((self._improve_column, range(len(self.columns))), (self._move, self.boxes)):
            best = self.cost()
            for _ in range(PASSES):
                before = best
                for one in many:
                    best = change(one, best)
                if best == before:
                    break

    def _improve_column(self, index: int, best: float) -> float:
        chosen = (list(self.columns[index]), self.starts[index])
        for order in _orders(chosen[0]):
            for start in STARTS:
                self.columns[index], self.starts[index] = list(order), start
                self.stack()
                cost = self.cost()
                if cost < best - 1e-9:
                    best, chosen = cost, (list(order), start)
        self.columns[index], self.starts[index] = chosen
        self.stack()
        return best

    def _move(self, number: int, best: float) -> float:
        """Try every height of one node between its neighbours; those below it may follow it."""
        index = next(i for i, column in enumerate(self.columns) if number in column)
        column = self.columns[index]
        position, kept = column.index(number), dict(self.y)
        if position:
            above = column[position - 1]
            first = kept[above] + self.boxes[above].height + ROW_GAP + TITLE
        else:
            first = self.tops[self.rows[index]] + TITLE
        last = max(self.bottoms[self.rows[index]] - self.boxes[number].height, first)
        chosen = kept
        for y in range(first, last + 1, STEP):
            for follow in (False, True):
                self.y = dict(kept)
                if follow:
                    for n in column[position:]:
                        self.y[n] += y - kept[number]
                self.y[number] = y
                self._push(column[position:])
                cost = self.cost()
                if cost < best - 1e-9:
                    best, chosen = cost, self.y
        self.y = chosen
        return best

    def _push(self, column: list[int]) -> None:
        """Move nodes down that stand over the one before."""
        for above, here in itertools.pairwise(column):
            self.y[here] = max(self.y[here], self.y[above] + self.boxes[above].height + ROW_GAP + TITLE)


def _orders(column: list[int]):
    if math.factorial(len(column)) <= MOST_ORDERS:
        yield from itertools.permutations(column)
        return
    yield column
    for i, j in itertools.combinations(range(len(column)), 2):
        swapped = list(column)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        yield swapped


def arrange(boxes: list[Box], wires: list[Wire], below: str = "") -> Places:
    """Places for all nodes, from (0, 0) to the right and downwards.

    Args:
        below: the stage that begins a second row.
    """
    tried = []
    for turn in range(TRIES):  # a search that only goes downhill depends on where it begins
        arrangement = Arrangement(boxes, wires, below)
        arrangement.shuffle(turn)
        arrangement.improve()
        tried.append((arrangement.cost(), turn, arrangement.places()))
        if turn and min(tried)[0] < HIDDEN:
            break
    return min(tried)[2]
