"""What each layer's error does to pictures, and what to spend on which layer because of it.

Measured on training captions: the model with one layer quantized, all others as they are. Errors of single layers are
taken to add up in squares.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...svdq_core.quantize.grid import INT8, Arithmetic, Grid
from ...svdq_core.quantize.part_plan import PartPlan
from ...svdq_core.quantize.problem import Problem
from ..baselines import METHODS
from ..evaluate.evaluated_scenes import calibration_scenes
from ..evaluate.linears import DenseLinear, Layer, SimulatedPart
from ..evaluate.measures import relative_errors
from ..evaluate.network import latents_by_step, load_flux, with_layers
from ..evaluate.quantizing import quantize_source, simulated
from .gate_run import GateRun, solve_layers

PROBES = 16  # captions
STEPS = 8
RANKS = (16, 32, 48, 64)
EXTRA_SHARE = 0.1  # of the 4-bit layers' bytes, for layers at 8 bits
CAPTION_SHIFT = 50  # replicates whose captions are others than those that are recorded


def measure_layers(run: GateRun, layers: Mapping[str, Layer]) -> dict[str, float]:
    """Squared relative error of the last latents with one of the layers at a time."""
    model = load_flux(run.device)
    scenes = calibration_scenes(PROBES, run.device, CAPTION_SHIFT + run.replicate)

    def last(network: torch.nn.Module) -> Tensor:
        *_, latents = latents_by_step(network, scenes, scenes.noise, STEPS)
        return latents

    exact = last(model)
    return {
        name: float(relative_errors(last(with_layers(model, {name: layer.on(run.device)})), exact).square().mean())
        for name, layer in layers.items()
        if not isinstance(layer, DenseLinear)
    }


def choose_ranks(run: GateRun) -> dict[str, int]:
    """Ranks of RANKS by layer, of together as many bytes as rank 32 everywhere."""
    specs = {rank: run.spec("fast", rank) for rank in RANKS}
    found = {rank: simulated(quantize_source(run.source, spec), spec) for rank, spec in specs.items()}
    usual = measure_layers(run, found[32])
    cost = {name: sum(run.source.weights[f"{name}.weight"].shape) for name in usual}
    errors = {n: {rank: usual[n] * ratio for rank, ratio in _ratios(run, found, n).items()} for n in usual}
    ranks, budget = dict.fromkeys(usual, RANKS[0]), sum((32 - RANKS[0]) * c for c in cost.values())
    while True:
        steps = {}
        for name, rank in ranks.items():
            higher = [r for r in RANKS if r > rank and (r - rank) * cost[name] <= budget]
            steps |= {(name, r): (errors[name][rank] - errors[name][r]) / ((r - rank) * cost[name]) for r in higher}
        if not steps or max(steps.values()) <= 0:
            return ranks
        name, rank = max(steps, key=steps.__getitem__)
        budget -= (rank - ranks[name]) * cost[name]
        ranks[name] = rank


def _ratios(run: GateRun, found: Mapping[int, Mapping[str, Layer]], name: str) -> dict[int, float]:
    """Rank -> squared error of the layer's output over that at rank 32."""
    x = run.source.inputs[name].tokens.float()
    exact = torch.nn.functional.linear(x, run.source.weights[f"{name}.weight"].float(), run.source.bias(name))
    errors = {rank: float((layers[name](x) - exact).square().sum()) for rank, layers in found.items()}
    return {rank: error / errors[32] for rank, error in errors.items()}


def with_eight_bits(run: GateRun) -> Mapping[str, Layer]:
    """`best`, and the layers whose errors cost most for their size at 8 bits, for EXTRA_SHARE more bytes."""
    spec = run.spec("best")
    layers = simulated(quantize_source(run.source, spec), spec)
    errors = measure_layers(run, layers)
    sizes = {name: run.source.weights[f"{name}.weight"].numel() for name in errors}
    chosen = spend(errors, sizes, EXTRA_SHARE * sum(sizes.values()))
    eight = GateRun("w8a8", run.replicate, run.recordings).spec("best")
    finer = simulated(quantize_source(run.source, eight), eight)
    return {name: finer[name] if name in chosen else layer for name, layer in layers.items()}


def mixed_bits(run: GateRun, bits: float = 5.0) -> Mapping[str, Layer]:
    """MixDQ's choice: weights at 4 or 8 bits by layer, `bits` on average, by what each layer's error does to pictures.

    Without a branch and smoothing, a scale for each output channel, 8-bit activations for each token.
    """
    four, eight = (_plain_layers(run, width) for width in (4, 8))
    errors = measure_layers(run, four)
    sizes = {name: run.source.weights[f"{name}.weight"].numel() for name in errors}
    chosen = spend(errors, sizes, (bits - 4) / 4 * sum(sizes.values()))
    return {name: eight[name] if name in chosen else layer for name, layer in four.items()}


def _plain_layers(run: GateRun, bits: int) -> dict[str, Layer]:
    top = 2.0 ** (bits - 1) - 1
    arithmetic, nearest = Arithmetic(Grid("int", -top, top, None), INT8), METHODS["nearest"]

    def solve(layer: str, plans: list[PartPlan], problems: list[Problem]) -> list[SimulatedPart]:
        parts = []
        for plan, problem in zip(plans, problems, strict=True):
            posed = nearest.adapt(replace(problem, arithmetic=arithmetic, shift=0.0))
            parts.append(SimulatedPart.of_fit(nearest.solve(posed), posed, plan.rows, plan.columns, nearest.see))
        return parts

    return solve_layers(run, solve)


def spend(errors: Mapping[str, float], sizes: Mapping[str, int], budget: float) -> set[str]:
    """Layers of together at most `budget` weights, those with the largest error for their size first."""
    chosen: set[str] = set()
    for name in sorted(errors, key=lambda n: errors[n] / sizes[n], reverse=True):
        if sizes[name] <= budget:
            chosen.add(name)
            budget -= sizes[name]
    return chosen
