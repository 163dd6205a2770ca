"""One run of a recipe: the number format, the replicate, and what was recorded for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.format import GELU_SHIFT
from ...svdq_core.quantize.grid import runtime_arithmetic
from ...svdq_core.quantize.one_layer import quantize_layer
from ...svdq_core.quantize.part_plan import PartPlan
from ...svdq_core.quantize.problem import Problem
from ...svdq_core.quantize.spec import QuantSpec
from ..evaluate.linears import DenseLinear, Layer, SimulatedLinear, SimulatedPart
from ..evaluate.quantizing import plan_of, source_linears
from ..evaluate.recorded_inputs import TOKENS, Source

USUAL_RANK = 32


class NumberForm(NamedTuple):
    """A number format: of the weights, and of what the runtime makes of the activations."""

    precision: str
    activations: str
    label: str


FORMS = {
    "w4a4": NumberForm("int4", "w4a4", "INT W4A4"),
    "w4a8": NumberForm("int4", "w4a8", "INT W4A8"),
    "nvfp4": NumberForm("nvfp4", "w4a4", "NVFP4 W4A4"),
    "w8a8": NumberForm("int8", "w4a8", "INT W8A8"),
}


@dataclass(frozen=True)
class Recordings:
    """Where recordings lie for all processes of a command.

    Args:
        folder: holds a file for each replicate and kind.
        makers: kind -> (captions, device, replicate) -> what was recorded.
        captions: that are recorded.
        device: that draws them.
    """

    folder: Path
    makers: Mapping[str, Callable[[int, torch.device, int], Source]]
    captions: int
    device: torch.device

    def make(self, kind: str, replicate: int) -> None:
        """Record and keep it, whole or not at all."""
        path = self._path(kind, replicate)
        source = self.makers[kind](self.captions, self.device, replicate)
        part = path.with_suffix(".part")
        torch.save(source, part)
        part.replace(path)

    def read(self, kind: str, replicate: int) -> Source:
        """What was made."""
        return torch.load(self._path(kind, replicate), weights_only=False)  # written by this command

    def _path(self, kind: str, replicate: int) -> Path:
        return self.folder / f"{kind}_{replicate}.pt"


class GateRun:
    """A replicate of a recipe in one format.

    Args:
        form: key of FORMS.
        replicate: the seed of quantization, and which captions and noise were recorded.
        recordings: of the command. device: that draws pictures, for recipes that do.
    """

    def __init__(self, form: str, replicate: int, recordings: Recordings) -> None:
        self.form, self.replicate, self.recordings = FORMS[form], replicate, recordings
        self.device = recordings.device

    @cached_property
    def source(self) -> Source:
        """The model, and its inputs on training captions."""
        return self.recordings.read("prompts", self.replicate)

    def recorded(self, kind: str) -> Source:
        """The same, recorded in another way."""
        return self.recordings.read(kind, self.replicate)

    def spec(self, method: str, rank: int = USUAL_RANK) -> QuantSpec:
        """What the pack's quantizer is asked for."""
        precision, activations, _ = self.form
        return QuantSpec(precision, activations, rank, method, seed=self.replicate, score_tokens=TOKENS)

    def pose(self, name: str, plan: PartPlan, source: Source, rank: int = USUAL_RANK) -> Problem:
        """One part of a layer as a problem, with the random numbers of this replicate."""
        is_shifted = plan.after_gelu and self.form.precision == "int4"
        weight = source.weights[f"{name}.weight"].float()
        return Problem(
            weight=weight[slice(*plan.rows), slice(*plan.columns)],
            statistics=source.inputs[name].columns(*plan.columns),
            arithmetic=runtime_arithmetic(self.form.precision, self.form.activations, is_shifted),
            shift=GELU_SHIFT if is_shifted else 0.0,
            rank=rank,
            seed=self.replicate,
            name=f"{name}, rows {plan.rows}, columns {plan.columns}",
            score_tokens=TOKENS,
        )


# layer name, its parts that share an input, their problems -> what each becomes
Solver = Callable[[str, list[PartPlan], list[Problem]], list[SimulatedPart]]


@torch.no_grad()
def solve_layers(
    run: GateRun, solve: Solver, source: Source | None = None, rank: Callable[[str], int] = lambda name: USUAL_RANK
) -> dict[str, Layer]:
    """Every Linear of the blocks by a solver; modulation layers as the pack quantizes them, the same in each recipe.

    Args:
        source: what was recorded, if not on captions as usual.
        rank: of the branch, by layer.
    """
    source = source or run.source
    layers: dict[str, Layer] = {}
    for name, linear in source_linears(source):
        weight, bias = source.weights[f"{name}.weight"].float(), source.bias(name)
        plan = plan_of(linear, weight)
        if plan.awq:
            packed, _ = quantize_layer(weight, bias, plan, run.spec("fast"), name, statistics=source.inputs[name])
            layers[name] = DenseLinear.of_layer(packed)
            continue
        parts: list[SimulatedPart] = []
        for columns in dict.fromkeys(part.columns for part in plan.parts):
            members = [part for part in plan.parts if part.columns == columns]
            parts += solve(name, members, [run.pose(name, part, source, rank(name)) for part in members])
        layers[name] = SimulatedLinear.of_parts(parts, bias)
    return layers


def median_layer_error(layers: Mapping[str, Layer], unseen: Mapping[str, Tensor], source: Source) -> float:
    """Median of the relative output errors of the layers that are no modulation.

    Args:
        unseen: layer -> tokens (T, K) of pictures that nothing was recorded of.
    """
    errors = []
    for name, layer in layers.items():
        if not isinstance(layer, DenseLinear):
            x = unseen[name].float()
            exact = torch.nn.functional.linear(x, source.weights[f"{name}.weight"].float().to(x.device))
            exact += source.bias(name).to(x.device)
            errors.append(float((layer.on(x.device)(x) - exact).norm() / exact.norm()))
    return float(torch.tensor(errors).median())
