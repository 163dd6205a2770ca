"""What a run measured, as the tables ask for it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .intervals import Estimate, estimate
from .methods import Way, ways
from .record import REFERENCE, read_results, to_tensor

MISSING = "-"  # what a table shows where nothing was measured


@dataclass(frozen=True)
class Findings:
    """Figures of every way, by caption."""

    found: dict[str, dict[str, Any]]

    @staticmethod
    def read(output: Path) -> "Findings":
        """What a run, finished or not, left in OUTPUT/results.json."""
        return Findings(read_results(output))

    @cached_property
    def is_hard(self) -> Tensor:
        return torch.tensor(self.found[REFERENCE]["is_hard"])

    @property
    def steps(self) -> list[int]:
        """Numbers of sampling steps that were measured, the most first."""
        return sorted((int(steps) for steps in self.found[REFERENCE]["steps"]), reverse=True)

    @property
    def has_reader(self) -> bool:
        """Whether the reader's weights were there."""
        return self.values(REFERENCE, self.steps[0], "read") is not None

    @property
    def measured_ways(self) -> list[Way]:
        return [way for way in ways() if way.name in self.found]

    def way(self, name: str) -> Way | None:
        """A way by its name, if it was measured."""
        return next((way for way in self.measured_ways if way.name == name), None)

    def values(self, name: str, steps: int | str, measure: str, of: str = "usual") -> Tensor | None:
        """Figures of a way, one for each caption of a set; None where it was not measured.

        Args:
            name: of a way, or REFERENCE or RESEED. steps: or "lora": with the LoRA.
            of: "usual" or "hard".
        """
        entry = self.found.get(name, {})
        figures = entry.get("lora") if steps == "lora" else entry.get("steps", {}).get(str(steps))
        if not figures or measure not in figures:
            return None
        return to_tensor(figures[measure])[..., self.is_hard if of == "hard" else ~self.is_hard]

    def estimate(self, name: str, steps: int | str, measure: str, of: str = "usual") -> Estimate | None:
        """Mean and interval of a figure."""
        values = self.values(name, steps, measure, of)
        return None if values is None else estimate(values)

    def difference(self, name: str, other: str, steps: int, measure: str = "error") -> Estimate | None:
        """How much larger a figure is for the other way: mean of the paired differences, and its interval."""
        mine, others = (self.values(n, steps, measure) for n in (name, other))
        return None if mine is None or others is None else estimate(others - mine)

    def cell(self, name: str, steps: int | str, measure: str, of: str = "usual") -> str:
        """A figure as a table shows it, with half its 95 % interval."""
        found = self.estimate(name, steps, measure, of)
        if found is None:
            return MISSING
        scale, digits = FORMATS[measure]
        return f"{scale * found.mean:.{digits}f} ± {scale * found.half_width:.{digits}f}"


# measure -> (what it is multiplied by, digits after the point)
FORMATS = {
    "error": (100.0, 1),
    "psnr": (1.0, 1),
    "ssim": (1.0, 3),
    "iou": (1.0, 3),
    "read": (100.0, 1),
    "kept": (100.0, 1),
    "effect_error": (100.0, 1),
    "style": (100.0, 1),
}
UNITS = {
    "error": "latent error, %",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "iou": "IoU",
    "read": "scenes right, %",
}
