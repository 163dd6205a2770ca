"""The fallback ladder: try the best way to compute something, step down for good when it cannot work, and say so once.

A step is left behind when it raises: no compiler on the machine, a Triton too old for the kernel, a GPU that lacks the
shared memory. Results stay the same within the tolerances of the tests, so a generation goes on.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch

logger = logging.getLogger("svdquant")
Result = TypeVar("Result")

_broken: set[tuple[str, str]] = set()  # (device, step) that raised once in this process
_said: set[str] = set()


def say_once(message: str, *args: object, level: int = logging.INFO) -> None:
    """Log a message the first time it comes up in this process."""
    text = message % args
    if text not in _said:
        _said.add(text)
        logger.log(level, "%s", text)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def steps_left_behind() -> int:
    """How many steps have failed in this process so far."""
    return len(_broken)


def climb(device: torch.device, steps: Sequence[tuple[str, Callable[[], Result]]]) -> Result:
    """The result of the first step that works on the device; the last one's errors are the caller's.

    Args:
        steps: (name in words for the user, what to call), best first.
    """
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        with torch.cuda.device(device):  # Triton launches on the current device
            return climb(device, steps)
    for (name, compute), (next_name, _) in pairwise(steps):
        if _broken and (str(device), name) in _broken:
            continue
        try:
            return compute()
        except (torch.cuda.OutOfMemoryError, KeyboardInterrupt):
            raise  # the next step needs no less memory
        except Exception as error:
            _broken.add((str(device), name))
            text = "%s does not work on %s (%s); using %s instead."
            say_once(text, name, device, _first_line(error), next_name, level=logging.WARNING)
            logger.debug("%s failed", name, exc_info=error)
    return steps[-1][1]()
