"""What every stage is told: where to write, how long to train, and from which seed."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...demo.install import MODELS


@dataclass(frozen=True)
class Options:
    """Orders for one stage.

    Args:
        output: folder of the finished models.
        work: folder of checkpoints and results.
        seconds: time to train, preparation not counted.
        deadline: time.time() at which training must be over, whatever `seconds` says.
        steps: train exactly so many steps, so that a run repeats exactly; 0 lets the clock decide.
        seed: of weights, scenes and noise.
        batch: scenes of a step in each process; 0 takes the stage's own number.
        pictures: scenes to train on, in each process, or to evaluate on; 0 takes the stage's own number.
        side: pixels of the pictures; only 256 gives a useful model.
        processes: that will train the FLUX together, for `warm_up`, which is alone.
    """

    output: Path
    work: Path
    seconds: float = 60.0
    deadline: float = 0.0
    steps: int = 0
    seed: int = 1
    batch: int = 0
    pictures: int = 0
    side: int = 256
    processes: int = 1

    def model(self, name: str) -> Path:
        """A model that an earlier stage wrote, else the one that the project ships."""
        return self.output / name if (self.output / name).exists() else MODELS / name

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return max(0.1, self.deadline - time.time()) if self.deadline else self.seconds


def parse(arguments: Sequence[str]) -> Options:
    """Read the options of a stage from its command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished models")
    parser.add_argument("--work", type=Path, help="folder of checkpoints and results (default: OUTPUT/work)")
    parser.add_argument("--seconds", type=float, default=60.0, help="time to train")
    parser.add_argument("--deadline", type=float, default=0.0, help="Unix time at which training must be over")
    parser.add_argument("--steps", type=int, default=0, help="train exactly so many steps instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=0, help="scenes of a step, in each process")
    parser.add_argument("--pictures", type=int, default=0, help="scenes to train or to evaluate on")
    parser.add_argument("--side", type=int, default=256, help="pixels; less than 256 only to try the code")
    parser.add_argument("--processes", type=int, default=1, help="that will train the FLUX, for warm_up")
    values = vars(parser.parse_args(arguments))
    values["work"] = values["work"] or values["output"] / "work"
    return Options(**values)
