"""Meta tensors, which have no memory, in place of tensors on a GPU: what a call would launch there can then be told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .gpus import Generation


class StandIn(threading.local):
    """The GPU that a thread's meta tensors stand for: its row of the table, and how many processors it has."""

    gpu: "Generation | None" = None
    processors = 1


stand_in = StandIn()


@contextmanager
def meta_stands_for(gpu: "Generation", processors: int) -> Iterator[None]:
    """Within it this thread's meta tensors count as tensors on such a GPU.

    Args:
        processors: streaming multiprocessors or compute units of the GPU.
    """
    before = stand_in.gpu, stand_in.processors
    stand_in.gpu, stand_in.processors = gpu, processors
    try:
        yield
    finally:
        stand_in.gpu, stand_in.processors = before
