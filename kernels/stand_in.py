"""Meta tensors, which have no memory, in place of tensors on a GPU: what a call would launch there can then be told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .gpus import Generation


class StandIn(threading.local):
    """The GPU that a thread's meta tensors stand for: its row of the table, how many processors it has, its name."""

    gpu: "Generation | None" = None
    processors = 1
    device: torch.device | None = None


stand_in = StandIn()


@contextmanager
def meta_stands_for(gpu: "Generation", processors: int, device: torch.device) -> Iterator[None]:
    """Within it this thread's meta tensors count as tensors on such a GPU.

    Args:
        processors: streaming multiprocessors or compute units of the GPU. device: its name here.
    """
    before = stand_in.gpu, stand_in.processors, stand_in.device
    stand_in.gpu, stand_in.processors, stand_in.device = gpu, processors, device
    try:
        yield
    finally:
        stand_in.gpu, stand_in.processors, stand_in.device = before


def meant(device: torch.device) -> torch.device:
    """The device itself, or the one that meta tensors stand for."""
    return (stand_in.device or device) if device.type == "meta" else device
