"""Moving the elements of a tensor from one tile order to another and back, block by block.

torch copies a permuted view in the order of the result, a few bytes at a time from all over the source. Here a block
that fits into a core's cache is gathered by one table of positions and then laid out in long runs: 3 to 4 times as fast
(DECISIONS 37).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .arena import empty

BLOCK_BYTES = 384 << 10  # of a block; with its table of positions it stays in the second-level cache, or nearly
# numpy.take(mode="wrap") checks each position with the fewest instructions: 0.10 ns a byte against 0.15 with "clip"
UNIT_BYTES = (2, 4, 8, 16, 32)  # sizes for which numpy gathers without calling a function for each element
Sizes = dict[str, int]


class TileOrder:
    """One permutation between a stored tensor and a natural one.

    Args:
        stored: axis letters of the flat stored tensor, slowest first; capitals have open sizes.
        natural: the same letters, one group for each dimension of the natural tensor, groups separated by commas.
        sizes: fixed sizes of the small letters. Each natural dimension has exactly one open letter.
    """

    def __init__(self, stored: str, natural: str, **sizes: int):
        self.stored, self.natural = stored.split(), [group.split() for group in natural.split(",")]
        self.sizes = sizes
        self.flat_natural = [axis for group in self.natural for axis in group]
        self._places = [self.flat_natural.index(axis) for axis in self.stored[:2]]

    def to_natural(self, stored: Tensor, *shape: int, out: Tensor | None = None) -> Tensor:
        """Stored tensor of any shape -> natural tensor of the given shape, in `out` if given (contiguous)."""
        sizes = self._all_sizes(shape)
        out = _empty_like(stored, shape) if out is None else out
        if not stored.numel():
            return out
        if stored.device.type != "cpu":
            view = stored.reshape([sizes[axis] for axis in self.stored])
            return out.copy_(view.permute([self.stored.index(axis) for axis in self.flat_natural]).reshape(shape))
        source, target = _elements(stored), _elements(out).reshape([sizes[axis] for axis in self.flat_natural])
        for span, place, block in self._blocks(sizes, stored.element_size(), forward=True):
            wanted = target[place]
            straight = wanted.flags.c_contiguous and block.natural.flags.c_contiguous
            gathered = wanted.reshape(-1).view(block.scratch.dtype) if straight else block.scratch
            np.take(source[span].view(gathered.dtype), block.table, out=gathered, mode="wrap")
            if not straight:
                wanted[...] = block.natural
        return out

    def to_stored(self, natural: Tensor, *shape: int) -> Tensor:
        """Natural tensor -> stored tensor under the label of the given shape."""
        sizes = self._all_sizes(tuple(natural.shape))
        out = _empty_like(natural, shape)
        if not natural.numel():
            return out
        if natural.device.type != "cpu":
            view = natural.reshape([sizes[axis] for axis in self.flat_natural])
            return out.copy_(view.permute([self.flat_natural.index(axis) for axis in self.stored]).reshape(shape))
        source, target = _elements(natural).reshape([sizes[axis] for axis in self.flat_natural]), _elements(out)
        for span, place, block in self._blocks(sizes, natural.element_size(), forward=False):
            block.natural[...] = source[place]
            np.take(block.scratch, block.table, out=target[span].view(block.scratch.dtype), mode="wrap")
        return out

    def _all_sizes(self, shape: tuple[int, ...]) -> Sizes:
        sizes = dict(self.sizes)
        for group, total in zip(self.natural, shape, strict=True):
            (free,) = (axis for axis in group if axis not in self.sizes)
            sizes[free] = total // math.prod(self.sizes[axis] for axis in group if axis != free)
        return sizes

    def _blocks(self, sizes: Sizes, element: int, forward: bool) -> Iterator[tuple[slice, tuple[slice, ...], "_Block"]]:
        """(its stored elements, its place in the natural tensor, the block): spans of the first two stored axes."""
        first, second = self.stored[:2]
        inner = math.prod(sizes[axis] for axis in self.stored[2:])
        most = max(BLOCK_BYTES // (inner * element), 1)  # entries of the second axis
        step, width = max(most // sizes[second], 1), min(most, sizes[second])
        made: dict[tuple[int, int], _Block] = {}  # blocks at the ends are smaller
        for i in range(0, sizes[first], step):
            for j in range(0, sizes[second], width):
                rows, columns = min(step, sizes[first] - i), min(width, sizes[second] - j)
                if (rows, columns) not in made:
                    made[rows, columns] = self._block(sizes | {first: rows, second: columns}, element, forward)
                place = [slice(None)] * len(self.flat_natural)
                place[self._places[0]], place[self._places[1]] = slice(i, i + rows), slice(j, j + columns)
                start = (i * sizes[second] + j) * inner
                yield slice(start, start + rows * columns * inner), tuple(place), made[rows, columns]

    def _block(self, sizes: Sizes, element: int, forward: bool) -> "_Block":
        unit = self._unit(sizes, element)
        stored = [axis for axis in self.stored if axis not in unit]
        natural = [axis for axis in self.flat_natural if axis not in unit]
        before, after = (stored, natural) if forward else (natural, stored)
        table = positions(tuple(sizes[axis] for axis in before), tuple(before.index(axis) for axis in after))
        scratch = np.empty(len(table), _dtype(math.prod(sizes[axis] for axis in unit) * element))
        view = scratch.view(_dtype(element)).reshape([sizes[axis] for axis in natural + unit])
        return _Block(table, scratch, view.transpose([(natural + unit).index(axis) for axis in self.flat_natural]))

    def _unit(self, sizes: Sizes, element: int) -> list[str]:
        """Trailing stored axes that are gathered as one: they also end the natural order, or are cheap to move later.

        Cheap is the last axis where it does not belong to the last natural dimension, which is then one long run.
        """
        count = 0
        while count < len(self.stored) - 2 and self.stored[-1 - count] == self.flat_natural[-1 - count]:
            count += 1
        if not count and self.stored[-1] not in self.natural[-1]:
            count = 1
        unit = self.stored[len(self.stored) - count :]
        return unit if math.prod(sizes[axis] for axis in unit) * element in UNIT_BYTES else []


@dataclass(frozen=True)
class _Block:
    """Memory for one block.

    Args:
        table: where each unit of the result is in the source.
        scratch: the block in natural order, in units; its axes within a unit are last.
        natural: a view of it with the axes of the natural tensor.
    """

    table: np.ndarray
    scratch: np.ndarray
    natural: np.ndarray


@lru_cache(maxsize=64)
def positions(sizes: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
    """For every element of a permuted array, where it was before."""
    table = np.arange(math.prod(sizes)).reshape(sizes).transpose(order).flatten()
    table.flags.writeable = False  # it is shared
    return table


def _dtype(nbytes: int) -> np.dtype:
    return np.dtype(f"u{nbytes}") if nbytes <= 8 else np.dtype(f"V{nbytes}")


def _elements(tensor: Tensor) -> np.ndarray:
    """A flat numpy view, no copy if the tensor is contiguous; bits only, since numpy lacks some dtypes."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return flat.view(_dtype(tensor.element_size()))


def _empty_like(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tensor.device.type != "cpu":
        return tensor.new_empty(shape)
    return empty(shape, tensor.dtype)
