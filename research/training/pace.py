"""How far a training is: in steps, or in seconds, and then the same in every process."""

import time

import torch

from . import processes

_LOOK_SECONDS, _LOOK_STEPS = 0.5, 50  # between two looks at the clock, at most


class Pace:
    """Progress of a training from 0 to 1.

    With `steps` it depends on nothing but the step, so a run repeats exactly. With `seconds` the clock decides; the
    first process reads it now and then and the others take its word, as they must agree on the learning rate.

    Args:
        seconds: time to train, without what went before `start`.
        steps: number of steps instead.
        spent: seconds that earlier runs of the same training took.
    """

    def __init__(self, device: torch.device, seconds: float, steps: int = 0, spent: float = 0.0) -> None:
        self._device, self._seconds, self._steps, self._spent = device, seconds, steps, spent
        self._begin = time.monotonic()
        self._base, self._rate, self._from, self._next = spent / seconds, 0.0, 0, 0
        self._last_look: tuple[int, float] | None = None

    @property
    def spent(self) -> float:
        """Seconds trained so far, earlier runs included."""
        return self._spent + time.monotonic() - self._begin

    def progress(self, step: int) -> float:
        """Share of the training that is done before `step`; at 1 it is over."""
        if self._steps:
            return step / self._steps
        if self._last_look is None or step >= self._next:
            self._look(step)
        return self._base + (step - self._from) * self._rate

    def _look(self, step: int) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        share = self.spent / self._seconds
        before = self._last_look
        rate = (share - before[1]) / max(1, step - before[0]) if before else 0.0
        steps = min(_LOOK_STEPS, max(1, int(_LOOK_SECONDS / (rate * self._seconds)))) if rate else 1
        share, self._rate, steps = processes.first_says([share, rate, steps], self._device)
        self._next = step + int(steps)
        self._base, self._from, self._last_look = share, step, (step, share)
