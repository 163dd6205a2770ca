"""The fallback ladder: try the best way to compute something, step down for good when it cannot work, and say so once.

A step is left behind when it raises: no compiler on the machine, a Triton too old for the kernel, a GPU that lacks the
shared memory. Results stay the same within the tolerances of the tests, so a generation goes on. Memory that has run
out is no fault of a step: it is tried once more with the allocator's cache given back, and never left behind for it.
"""

import logging
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic, TypeVar

import torch

from .stand_in import meant

logger = logging.getLogger("svdquant")
Result = TypeVar("Result")
Step = TypeVar("Step")

_broken: set[tuple[str, str]] = set()  # (device, step) that raised once in this process
_reordered: set[Hashable] = set()  # what was measured, and changed the order of steps
_said: set[str] = set()
# What Triton, cuBLAS and the drivers call it; torch's allocator raises a type of its own.
_OUT_OF_MEMORY = ("out of memory", "cublas_status_alloc_failed", "hipblas_status_alloc_failed", "hiperroroutofmemory")
# What a CUDA graph under capture refuses: it works again outside.
_CAPTURING = ("stream is capturing", "capture_mode", "stream capture")


def say_once(message: str, *args: object, level: int = logging.INFO) -> None:
    """Log a message the first time it comes up in this process."""
    text = message % args
    if text not in _said:
        _said.add(text)
        logger.log(level, "%s", text)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def steps_left_behind() -> int:
    """How often the order of steps has changed in this process: by a step that failed, or by what was measured."""
    return len(_broken) + len(_reordered)


def note_new_order(what: Hashable) -> None:
    """Tell those who keep what the first step made that some steps are tried in another order from now on."""
    _reordered.add(what)


def _says(error: BaseException, words: Sequence[str]) -> bool:
    text = str(error).lower()
    return any(word in text for word in words)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class Attempt(Generic[Step]):
    """One try of a step, as a context: what it raises is looked at, and passed on where the next step cannot help.

    Args:
        device: where it runs. name, step: of the step. next_name: of the one below it; None: there is none.
        again: it ran out of memory a moment ago.
    """

    __slots__ = ("_again", "_device", "_name", "_next_name", "out_of_memory", "step")

    def __init__(self, device: torch.device, name: str, step: Step, next_name: str | None, again: bool = False):
        self._device, self._name, self.step, self._next_name, self._again = device, name, step, next_name, again
        self.out_of_memory = False

    def __enter__(self) -> Step:
        return self.step

    def __exit__(self, _kind, error: BaseException | None, trace) -> bool:
        # an allocator that raised its own error has emptied its cache already, and the next step needs no less memory
        if error is None or not isinstance(error, Exception) or isinstance(error, torch.cuda.OutOfMemoryError):
            return False
        if self._device.type == "meta":
            return False  # nothing ran that could have failed
        if _says(error, _CAPTURING) or _is_capturing(self._device):
            return False  # what a capture refuses works again outside, and another step would be captured unseen
        if _says(error, _OUT_OF_MEMORY):
            if self._again:
                raise torch.cuda.OutOfMemoryError(f"{self._name} on {self._device}: {_first_line(error)}") from error
            traceback.clear_frames(trace)  # they hold the step's scratch memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.out_of_memory = True
            return True
        if self._next_name is None:
            return False
        _broken.add((str(self._device), self._name))
        text = "%s does not work on %s (%s); using %s instead."
        say_once(text, self._name, self._device, _first_line(error), self._next_name, level=logging.WARNING)
        logger.debug("%s failed", self._name, exc_info=error)
        return True


def attempts(device: torch.device, steps: Sequence[tuple[str, Step]]) -> Iterator[Attempt[Step]]:
    """The tries that a ladder allows, for a loop that returns from within the first that works.

    Args:
        steps: (name in words for the user, what the caller does with it), best first. The last one's errors are the
            caller's.
    """
    last = len(steps) - 1
    for i, (name, step) in enumerate(steps):
        if i < last and _broken and (str(meant(device)), name) in _broken:
            continue
        next_name = steps[i + 1][0] if i < last else None
        attempt = Attempt(device, name, step, next_name)
        yield attempt
        if attempt.out_of_memory:
            yield Attempt(device, name, step, next_name, again=True)


def is_elsewhere(device: torch.device) -> bool:
    """Whether a device is a GPU but not the current one, on which Triton launches."""
    return device.type == "cuda" and device.index not in (None, torch.cuda.current_device())


def descend(device: torch.device, steps: Sequence[tuple[str, Callable[[], Result]]]) -> Result:
    """The result of the first step that works on the device.

    Args:
        steps: (name in words for the user, what to call), best first. The last one's errors are the caller's.
    """
    if is_elsewhere(device):
        with torch.cuda.device(device):
            return descend(device, steps)
    for attempt in attempts(device, steps):
        with attempt as compute:
            return compute()
    raise AssertionError("the last step returns or raises")
