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
from ..evaluate.other_programs import PROGRAMS
from ..evaluate.quantizing import quantize_source, simulated
from ..evaluate.recorded_inputs import Source, record, record_noise
from .gate_run import FORMS, USUAL_RANK, GateRun, solve_layers
from .sensitivity import choose_ranks, mixed_bits, with_eight_bits
from .step_weights import record_weighted
from .variants import Variant, record_split

# kind of recording -> (captions, device, replicate) -> what is recorded
RECORDERS: dict[str, Callable[[int, torch.device, int], Source]] = {
    "prompts": record,
    "noise": lambda captions, device, replicate: record_noise(device, replicate),
    "split": record_split,
    "weighted": record_weighted,
}
FOUR_BITS = ("w4a4", "w4a8", "nvfp4")
BASE = "best"

# What is said of the presets, and what it is measured against.
CLAIMS = (
    ("best", "deepcompressor"),
    ("best", "quarot_gptq"),
    ("best", "paper"),
    ("best", "vidit_q"),
    ("best", "atom"),
    ("best", "mixdq"),
    ("fast", "nearest"),
    ("fast", "paper"),
    ("fast", "deepcompressor"),
    ("best_noise", "fast_noise"),
    ("best_noise", "fast"),
    ("best_noise", "deepcompressor"),
    ("fast_noise", "paper"),
)

# Rows of a table in the shape of the paper's: format -> recipes.
PAPER_ROWS = {
    "w8a8": ("vidit_q", "best"),
    "w4a8": ("nearest", "mixdq", "vidit_q", "quarot_gptq", "paper", "deepcompressor", "fast", "best"),
    "w4a4": ("nearest", "hadamard", "atom", "quarot_gptq", "paper", "deepcompressor", "fast", "best"),
    "nvfp4": ("nearest", "quarot_gptq", "paper", "deepcompressor", "fast", "best"),
}


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


def by_program(name: str) -> Callable[[GateRun], Mapping[str, Layer]]:
    """Another program's steps as research/evaluate/other_programs.py has them."""

    def solve(layer: str, plans: list[PartPlan], problems: list[Problem]) -> list[SimulatedPart]:
        found = (PROGRAMS[name](problem, plan) for plan, problem in zip(plans, problems, strict=True))
        return [part for parts in found for part in parts]

    return lambda run: solve_layers(run, solve)


RECIPES: dict[str, Recipe] = {
    "best": Recipe("`best`, recorded inputs", by_pack("best"), (*FOUR_BITS, "w8a8"), "ours"),
    "fast": Recipe("`fast`, recorded inputs", by_pack("fast"), origin="ours"),
    "fast_noise": Recipe("`fast`, inputs from noise", by_pack("fast", "noise"), origin="ours", recordings=("noise",)),
    "best_noise": Recipe("`best`, inputs from noise", by_pack("best", "noise"), origin="ours", recordings=("noise",)),
    "nearest": Recipe("round to nearest", by_method("nearest"), origin="simulated"),
    "paper": Recipe("SVDQuant as in the paper", by_method("paper"), origin="simulated"),
    "deepcompressor": Recipe(
        "SVDQuant, DeepCompressor's recipe with GPTQ", by_method("deepcompressor_gptq"), origin="simulated"
    ),
    "held_out": Recipe("errors measured on held-out prompts", Variant("split"), recordings=("split",)),
    "damping_chosen": Recipe(
        "damping chosen on held-out prompts", Variant("split", damping="chosen"), recordings=("split",)
    ),
    "damping_01": Recipe("damping 0.1", Variant(damping=0.1)),
    "damping_1": Recipe("damping 1", Variant(damping=1.0)),
    "centred": Recipe("correlations about the mean, its loss in the bias", Variant(is_centred=True)),
    "weighted": Recipe(
        "tokens weighed by what later steps make of errors", Variant("weighted"), recordings=("weighted",)
    ),
    "four_over_six": Recipe("Four-Over-Six activations", Variant(has_four_over_six=True), forms=("nvfp4",)),
    "ranks_by_layer": Recipe(
        "rank by layer, 16 to 64, at the same size", Variant(rank=lambda run: choose_ranks(run).__getitem__)
    ),
    "rank_48": Recipe("rank 48 everywhere", by_pack("best", rank=48)),
    "eight_bits": Recipe("8 bits where it helps most, 10 % more weights", with_eight_bits, forms=("w4a4", "nvfp4")),
    "hadamard": Recipe("block Hadamard rotation, round to nearest", by_method("hadamard"), origin="simulated"),
    "quarot_gptq": Recipe("QuaRot with GPTQ", by_method("quarot_gptq"), origin="simulated"),
    "vidit_q": Recipe("ViDiT-Q", by_program("vidit_q"), forms=("w4a8", "w8a8"), origin="simulated"),
    "atom": Recipe("Atom", by_program("atom"), forms=("w4a4",), origin="simulated"),
    "mixdq": Recipe("MixDQ, weights of 5 bits on average", mixed_bits, forms=("w4a8",), origin="simulated"),
}
