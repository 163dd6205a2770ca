"""The loop of a training: it keeps time, says how things go, and can be stopped and started again at any step."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...demo.model_files import read_checkpoint, write_checkpoint
from ...svdq_core.checkpoint.save import save_text
from . import processes
from .options import Options
from .pace import Pace

_SAVE_SECONDS = 45
_SAY_SECONDS = 20
_begin = time.monotonic()


def say(text: str) -> None:
    """Print a line with the time since this process began; of several processes only the first speaks."""
    if processes.RANK == 0:
        print(f"[{time.monotonic() - _begin:6.1f} s] {text}", flush=True)


def step_generator(device: torch.device, seed: int, step: int) -> torch.Generator:
    """Random numbers of one step in this process: the same after a restart, others in every process."""
    return torch.Generator(device).manual_seed((seed * 10_000_019 + step) * 64 + processes.RANK)


class Loop:
    """Steps of a training.

    Args:
        name: of the checkpoint.
        parts: name -> what has state_dict() and load_state_dict(): networks, optimizers.
        write: called with each checkpoint, to write the model so far.
    """

    def __init__(
        self,
        options: Options,
        device: torch.device,
        name: str,
        parts: dict[str, Any],
        write: Callable[[], None] = lambda: None,
    ) -> None:
        self._options, self._device, self._parts, self._write = options, device, parts, write
        self._path = options.work / f"{name}.checkpoint"
        self.step, self.spent, self.loss = 0, 0.0, 0.0
        state = read_checkpoint(self._path)
        if state:
            self.step, self.spent = state["step"], state["spent"]
            for part, content in state["parts"].items():
                parts[part].load_state_dict(content)
            say(f"{name}: going on from step {self.step}, {self.spent:.0f} s")
        self._name = name

    def steps(self) -> Iterator[tuple[int, float]]:
        """Yield (step, progress from 0 to 1) until the training is over; a checkpoint is written now and then.

        Raises:
            SystemExit: with `steps` given, the deadline came first; the same command goes on from the checkpoint.
        """
        options = self._options
        seconds = min(options.seconds, self.spent + options.seconds_left)
        pace = Pace(self._device, seconds, options.steps, self.spent)
        saved = said = time.monotonic()
        said_step = self.step
        while (progress := pace.progress(self.step)) < 1:
            yield self.step, progress
            self.step += 1
            self.spent = pace.spent
            now = time.monotonic()
            if now - said > _SAY_SECONDS:
                milliseconds = (now - said) / (self.step - said_step) * 1000
                said, said_step = now, self.step
                say(f"{self._name} step {self.step} {progress:.0%} loss {float(self.loss):.4f} {milliseconds:.1f} ms")
            if now - saved > _SAVE_SECONDS:
                self.save()
                saved = now
            if options.steps and self.step % 20 == 0:
                (is_late,) = processes.first_says([float(options.seconds_left <= 0.1)], self._device)
                if is_late:
                    self.save()
                    raise SystemExit(f"{self._name}: the deadline came at step {self.step}; run it again to go on.")
        self.save()
        say(f"{self._name}: {self.step} steps in {self.spent:.1f} s, loss {float(self.loss):.4f}")

    def watch(self, loss: torch.Tensor) -> None:
        """Take note of a step's loss, without waiting for the device."""
        loss = loss.detach()
        self.loss = loss if isinstance(self.loss, float) else self.loss * 0.98 + loss * 0.02

    def save(self) -> None:
        """Write checkpoint and model, in the first process."""
        if processes.RANK:
            return
        content = {name: part.state_dict() for name, part in self._parts.items()}
        write_checkpoint(self._path, {"step": self.step, "spent": self.spent, "parts": content})
        self._write()

    def facts(self, recipe: str) -> dict[str, object]:
        """Provenance for a model's metadata."""
        return {
            "recipe": recipe,
            "seed": self._options.seed,
            "steps": self.step,
            "seconds": round(self.spent, 1),
            "processes": processes.WORLD,
        }


def write_results(options: Options, name: str, results: dict[str, Any]) -> None:
    """Write what a stage measured to WORK/results/NAME.json."""
    if processes.RANK:
        return
    save_text(options.work / "results" / f"{name}.json", json.dumps(results, indent=1) + "\n")
