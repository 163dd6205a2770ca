"""What calls would launch on a GPU, told by running them on meta tensors there and then, without any kernel.

The same code chooses paths, tiles and constants as in a real call, so nothing here has to be kept in step with it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from ..gpus import Generation
from ..stand_in import meta_stands_for


class Wanted(NamedTuple):
    """A launch that would take place; arguments: meta tensors, descriptors of them, numbers and None."""

    kernel: Any
    arguments: tuple
    constants: dict[str, Any]


class DryRun(threading.local):
    """Of a thread: `found`, the launches by what decides which compiled kernel they need; None: launches take place."""

    found: dict[tuple, Wanted] | None = None


dry_run = DryRun()


@contextmanager
def launches_noted(gpu: Generation, processors: int, device: torch.device) -> Iterator[dict[tuple, Wanted]]:
    """Within it this thread launches nothing, and calls on meta tensors note what they would launch.

    Args:
        gpu, processors, device: of the GPU that meta tensors stand for; its name is part of the keys.

    Returns:
        launches by key, in the order in which they came up first.
    """
    found: dict[tuple, Wanted] = {}
    before, dry_run.found = dry_run.found, found
    try:
        with meta_stands_for(gpu, processors, device), torch.no_grad():
            yield found
    finally:
        dry_run.found = before
