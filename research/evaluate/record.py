"""What was measured, on disk from the moment it is known: one JSON file for each way, and which process does which."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...svdq_core.checkpoint.save import save_text
from .measures import Figures

DIGITS = 4  # that count
RESULTS = "results.json"
REFERENCE, RESEED = "unquantized", "reseed"  # names of records beside those of the ways


@dataclass(frozen=True)
class Records:
    """Where a run keeps what it found.

    Args:
        work: its `ways` hold a file for each finished way, its `claims` say what somebody works on.
        output: holds everything in one file.
    """

    work: Path
    output: Path

    def clear(self) -> None:
        """Forget an earlier run."""
        self.output.mkdir(parents=True, exist_ok=True)
        for name in ("ways", "claims"):
            (self.work / name).mkdir(parents=True, exist_ok=True)
            for path in (self.work / name).iterdir():
                path.unlink()

    def claim(self, name: str) -> bool:
        """Take a piece of work, unless another process did."""
        try:
            os.close(os.open(self.work / "claims" / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    def write(self, name: str, found: dict[str, Any]) -> None:
        """Write what was found, whole or not at all."""
        save_text(self.work / "ways" / f"{name}.json", json.dumps(found))

    def publish(self) -> None:
        """Put everything finished so far into the one file."""
        paths = sorted((self.work / "ways").glob("*.json"))
        entries = (f"{json.dumps(path.stem)}: {path.read_text(encoding='utf-8')}" for path in paths)
        part = self.output / f"{RESULTS}.{os.getpid()}.part"
        part.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")
        part.replace(self.output / RESULTS)


def read_results(output: Path) -> dict[str, dict[str, Any]]:
    """What a run published: way -> what was found."""
    return json.loads((output / RESULTS).read_text(encoding="utf-8"))


def to_lists(figures: Figures) -> dict[str, list]:
    """Figures as JSON takes them; what is not finite becomes null."""

    def plain(values: Tensor) -> list:
        if values.ndim > 1:
            return [plain(row) for row in values]
        return [float(f"{v:.{DIGITS}g}") if math.isfinite(v) else None for v in values.double().tolist()]

    return {name: plain(values) for name, values in figures.items()}


def to_tensor(values: list) -> Tensor:
    """A list of a record as a float64 tensor, null as NaN."""
    if values and isinstance(values[0], list):
        return torch.stack([to_tensor(row) for row in values])
    return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float64)
