"""What the gate compares: a table of recipes, name -> how. A new one is a row.

`make` turns a run into the layers of the model, by the host's names; a recipe may draw, train or record on the
run's device. Rows are compared with the row `against`, in the same format, replicate by replicate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ...svdq_core.quantize.part_plan import PartPlan
from ...svdq_core.quantize.problem import Problem
from ..baselines import METHODS
from ..evaluate.linears import Layer, SimulatedPart
from ..evaluate.quantizing import quantize_source, simulated
from ..evaluate.recorded_inputs import Source, record, record_noise
from .gate_run import FORMS, USUAL_RANK, GateRun, solve_layers

# kind of recording -> (captions, device, replicate) -> what is recorded
RECORDERS: dict[str, Callable[[int, torch.device, int], Source]] = {
    "prompts": record,
    "noise": lambda captions, device, replicate: record_noise(device, replicate),
}
FOUR_BITS = ("w4a4", "w4a8", "nvfp4")
BASE = "best"


@dataclass(frozen=True)
class Recipe:
    """A way to quantize.

    Args:
        title: in the table.
        make: run -> layers.
        forms: number formats that it is tried in, keys of FORMS.
        origin: "ours" (what the pack does), "simulated" (another program's steps) or "tried".
        against: recipe that it is compared with.
        recordings: kinds that its runs read, keys of RECORDERS.
    """

    title: str
    make: Callable[[GateRun], Mapping[str, Layer]]
    forms: tuple[str, ...] = FOUR_BITS
    origin: str = "tried"
    against: str = BASE
    recordings: tuple[str, ...] = ("prompts",)

    def __post_init__(self) -> None:
        if unknown := set(self.forms) - FORMS.keys():
            raise ValueError(f"{self.title}: no such format: {sorted(unknown)}. Known: {', '.join(FORMS)}.")


def by_pack(method: str, kind: str = "prompts", rank: int = USUAL_RANK) -> Callable[[GateRun], Mapping[str, Layer]]:
    """The pack's own quantizer on a recording of some kind."""

    def make(run: GateRun) -> Mapping[str, Layer]:
        source, spec = run.recorded(kind), run.spec(method, rank)
        return simulated(quantize_source(source, spec), spec)

    return make


def by_method(name: str) -> Callable[[GateRun], Mapping[str, Layer]]:
    """A method of research/baselines.py on every part."""
    method = METHODS[name]

    def solve(layer: str, plans: list[PartPlan], problems: list[Problem]) -> list[SimulatedPart]:
        found = []
        for plan, problem in zip(plans, problems, strict=True):
            adapted = method.adapt(problem)
            fit = method.solve(adapted)
            found.append(SimulatedPart.of_fit(fit, adapted, plan.rows, plan.columns, method.see))
        return found

    return lambda run: solve_layers(run, solve)


RECIPES: dict[str, Recipe] = {
    "best": Recipe("`best`, recorded inputs", by_pack("best"), origin="ours"),
    "fast": Recipe("`fast`, recorded inputs", by_pack("fast"), origin="ours"),
    "fast_noise": Recipe("`fast`, inputs from noise", by_pack("fast", "noise"), origin="ours", recordings=("noise",)),
    "best_noise": Recipe("`best`, inputs from noise", by_pack("best", "noise"), origin="ours", recordings=("noise",)),
    "nearest": Recipe("round to nearest", by_method("nearest"), origin="simulated"),
    "paper": Recipe("SVDQuant as in the paper", by_method("paper"), origin="simulated"),
    "deepcompressor": Recipe(
        "SVDQuant, DeepCompressor's recipe with GPTQ", by_method("deepcompressor_gptq"), origin="simulated"
    ),
}
