"""Memory for tensors that are about to be filled: aligned, side by side, and what is only read through used again.

Reading a checkpoint is as much about getting memory as about moving bytes: a page that is touched for the first time
costs more than copying what goes into it, and large ones cost several times as much in a virtual machine whose host
takes free memory back (DECISIONS 37): torch does not ask for them, numpy does.
"""

import math
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..kernels.format import BLOB_ALIGNMENT


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU, aligned as a blob is."""
    nbytes = math.prod(shape) * dtype.itemsize
    room = torch.empty(nbytes + BLOB_ALIGNMENT, dtype=torch.uint8)
    start = -room.data_ptr() % BLOB_ALIGNMENT
    return torch.from_numpy(room.numpy()[start : start + nbytes]).view(dtype).view(shape)  # a storage of its own size


def blank(nbytes: int, device: torch.device) -> Tensor:
    """A blob to be."""
    if device.type == "cpu":
        return empty((nbytes,), torch.uint8)
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


def aligned(nbytes: int) -> int:
    """The room that so many bytes take in a blob."""
    return -(-nbytes // BLOB_ALIGNMENT) * BLOB_ALIGNMENT


LEAST_STAGED = 64 << 20  # bytes of a thread's staging memory; what nothing is read into takes no memory


class Arena:
    """Room for the tensors of one layer, in the order in which they are asked for: its blob, before there is a layout.

    Args:
        nbytes: sum of aligned(tensor.nbytes) over the tensors that will be asked for, and over those that may be put
            behind them when the blob is made.
    """

    def __init__(self, nbytes: int):
        self.memory = empty((nbytes,), torch.uint8)
        self._used = 0

    @classmethod
    def holding(cls, memory: Tensor) -> "Arena":
        """One that is full of tensors already: a blob as it was read, (nbytes,) uint8."""
        arena = cls(0)
        arena.memory, arena._used = memory, memory.numel()
        return arena

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor; outside of the arena where its room is used up."""
        nbytes = math.prod(shape) * dtype.itemsize
        start = self._used
        if start + aligned(nbytes) > self.memory.numel():
            return empty(shape, dtype)
        self._used += aligned(nbytes)
        self.memory[start + nbytes : self._used] = 0  # gaps are saved with the blob: equal layers, equal bytes
        return self.memory[start : start + nbytes].view(dtype).view(shape)

    def copy(self, tensor: Tensor) -> Tensor:
        """The same values, in the arena."""
        room = self.take(tuple(tensor.shape), tensor.dtype)
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            return room.copy_(tensor)
        target, source = (t.detach().reshape(-1).view(torch.uint8).numpy() for t in (room, tensor))
        np.copyto(target, source)  # in this thread alone: torch would start all cores for each of several readers
        return room

    def claim(self, tensors: Sequence[Tensor]) -> list[int] | None:
        """Where each tensor lies in the memory, or a place behind everything else for what lies elsewhere.

        Returns:
            None where a place is missing, or would have to be one that was given away before.
        """
        starts, end = [self._offset_of(tensor) for tensor in tensors], self._used
        if any(s is None and self._shares(t) for s, t in zip(starts, tensors, strict=True)):
            return None
        for index, tensor in enumerate(tensors):
            if starts[index] is None:
                starts[index], end = end, end + aligned(tensor.nbytes)
        if end > self.memory.numel():
            return None
        self._used = end
        return [start for start in starts if start is not None]

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor has a place of its own in the memory, contiguous and aligned."""
        return self._offset_of(tensor) is not None

    def _shares(self, tensor: Tensor) -> bool:
        return bool(tensor.nbytes) and tensor.untyped_storage().data_ptr() == self.memory.untyped_storage().data_ptr()

    def _offset_of(self, tensor: Tensor) -> int | None:
        if not self._shares(tensor) or not tensor.is_contiguous():
            return None
        offset = tensor.data_ptr() - self.memory.data_ptr()
        return None if offset % BLOB_ALIGNMENT else offset


class Staging(threading.local):
    """Memory of each thread for what it reads only to put it into another order: one layer after the other lies there.

    What was taken is good until the same thread calls restart(); no layer may keep a view of it.
    """

    def __init__(self):
        self._memory = empty((0,), torch.uint8)
        self._used = 0

    def restart(self) -> None:
        """Give back everything that this thread has taken."""
        self._used = 0

    def take(self, nbytes: int) -> Tensor:
        """(nbytes,) uint8, uninitialised."""
        start = self._used
        self._used += aligned(nbytes)
        if self._used > self._memory.numel():  # what lies in the old memory stays there; the next layer has room
            self._memory = empty((max(self._used, LEAST_STAGED),), torch.uint8)
        return self._memory[start : start + nbytes]
