"""The table of a run: each recipe's error with its interval, and the paired difference to what it began with."""

import json
from pathlib import Path

import torch

from ..evaluate.intervals import estimate
from .refinements import TARGETS

COLUMNS = ("error at 20 steps", "error at 4 steps", "error with LoRA", "LoRA kept", "LoRA effect_error", "projection")
TABLE = "refine.md"


def write_report(output: Path) -> Path:
    """Write OUTPUT/refine.md of the figures in OUTPUT; return its path."""
    lines = ["# Refining the demo's FLUX", ""]
    for target in TARGETS:
        path = output / f"{target.name}.json"
        if path.exists():
            lines += _section(target.name, json.loads(path.read_text(encoding="utf-8")))
    report = output / TABLE
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return report


def _section(name: str, found: dict) -> list[str]:
    recipes = found["recipes"]
    first = next(iter(recipes.values()))
    hard = torch.tensor(first["hard"])
    columns = [column for column in COLUMNS if column in first["figures"]]
    lines = [f"## {name}: {found['captions']} captions, {int(hard.sum())} hard ones", ""]
    lines += ["| | hard, 20 steps, % | difference, points | " + " | ".join(columns) + " | seconds |"]
    lines += ["|" + "---|" * (len(columns) + 4)]
    for recipe, values in recipes.items():
        figures = {column: torch.tensor(values["figures"][column]) for column in columns}
        error, begun = figures[COLUMNS[0]], torch.tensor(first["figures"][COLUMNS[0]])
        cells = [_percent(error[hard]), "" if values is first else _percent((error - begun)[~hard])]
        cells += [_percent(figures[column][~hard]) for column in columns]
        lines.append(f"| {recipe} | " + " | ".join(cells) + f" | {values['seconds']:.0f} |")
    return [*lines, ""]


def _percent(values: torch.Tensor) -> str:
    found = estimate(values)
    return "" if found is None else f"{100 * found.mean:.2f} ± {100 * found.half_width:.2f}"
