"""Other programs' steps that take more than one scale and one branch for a layer, simulated part by part.

    atom      channels with the largest inputs at 8 bits, the others at 4 in groups of 128, GPTQ: arXiv:2310.19102
    vidit_q   smoothing, then rotation; a scale for each output channel and each token: ViDiT-Q, arXiv:2406.02540

Atom keeps 128 of 4096 channels at 8 bits: the same share is taken here, and its clipping of both. ViDiT-Q takes one
exponent of its smoothing for a layer; which, is searched here on the layer's own output. Both symmetric.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...svdq_core.quantize.gptq import FactoredHessian, round_gptq
from ...svdq_core.quantize.grid import INT8, Grid
from ...svdq_core.quantize.part_plan import PartPlan
from ...svdq_core.quantize.problem import Problem
from ...svdq_core.quantize.round import GroupScales, fit_scales, round_to_units, units_to_values
from ...svdq_core.quantize.smooth import normalize_factor
from ..baselines import PAPER_DAMPING, rotate
from .linears import SimulatedPart

ATOM_SHARE = 32  # of so many channels, one stays at 8 bits
ATOM_GROUP = 128
ATOM_CLIP = {"weights": 0.85, "activations": 0.9}  # of the largest value
ATOM_GRID = Grid("int", -7.0, 7.0, ATOM_GROUP)
VIDIT_EXPONENTS = (0.0, 0.25, 0.5, 0.75)

Program = Callable[[Problem, PartPlan], list[SimulatedPart]]


def atom(problem: Problem, plan: PartPlan) -> list[SimulatedPart]:
    """Two parts of the same rows: ordinary channels, filled up with zeros to whole groups, and outlier channels."""
    problem = replace(problem, shift=0.0)
    columns = problem.weight.shape[1]
    kept = max(16, columns // ATOM_SHARE)
    order = problem.statistics.mean_square.argsort(descending=True, stable=True)
    outliers, others = order[:kept].sort().values, order[kept:].sort().values
    eight = fit_scales(problem.weight[:, outliers], INT8, problem.scale_dtype, sweep=False)
    values = units_to_values(round_to_units(problem.weight[:, outliers], eight, INT8), eight, INT8)
    hessian, _ = problem.statistics.hessian()
    padding = -len(others) % ATOM_GROUP

    def see_others(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x.float()[..., others.to(x.device)], (0, padding))

    def see_outliers(x: Tensor) -> Tensor:
        return x.float()[..., outliers.to(x.device)]

    weight = see_others(problem.weight)
    moments = torch.nn.functional.pad(hessian[others][:, others], (0, padding, 0, padding))
    factored = FactoredHessian.factor(moments, PAPER_DAMPING)
    assert factored is not None, "a Hessian is positive definite once damped"
    absmax = ATOM_GRID.groups(weight).abs().amax(dim=-1) * (ATOM_CLIP["weights"] / ATOM_GRID.high)
    scales = GroupScales(torch.where(absmax > 0, absmax, 1.0).to(problem.scale_dtype))
    four = units_to_values(round_gptq(weight, scales, ATOM_GRID, factored), scales, ATOM_GRID)
    return [
        _plain_part(four, plan, ATOM_GRID, see_others, rounding=_clip_and_round),
        _plain_part(values, plan, INT8, see_outliers),
    ]


def _clip_and_round(x: Tensor, part: SimulatedPart) -> Tensor:
    groups = ATOM_GRID.groups(x)
    scales = groups.abs().amax(dim=-1, keepdim=True) * (ATOM_CLIP["activations"] / ATOM_GRID.high)
    return (ATOM_GRID.snap(groups / torch.where(scales > 0, scales, 1.0)) * scales).flatten(-2)


def vidit_q(problem: Problem, plan: PartPlan) -> list[SimulatedPart]:
    """One part of 4 or 8 bits, as the problem's weights have them, with 8-bit activations."""
    problem = replace(problem, shift=0.0)
    bits_grid = replace(problem.arithmetic.weights, group_size=None)
    best, least = None, float("inf")
    for exponent in VIDIT_EXPONENTS:
        spans = problem.statistics.absmax**exponent / problem.weight.abs().amax(dim=0) ** (1 - exponent)
        smooth = normalize_factor(spans if exponent else torch.ones_like(spans), problem.scale_dtype)
        weight = rotate(problem.weight * smooth)
        scales = fit_scales(weight, bits_grid, problem.scale_dtype, sweep=False)
        values = units_to_values(round_to_units(weight, scales, bits_grid), scales, bits_grid)

        def see(x: Tensor, smooth: Tensor = smooth) -> Tensor:
            return rotate(x.float() / smooth.to(x.device))

        part = _plain_part(values, plan, INT8, see)
        error = program_error([part], problem, problem.tokens)
        if error < least:
            best, least = part, error
    assert best is not None
    return [best]


PROGRAMS: dict[str, Program] = {"atom": atom, "vidit_q": vidit_q}


def program_error(parts: list[SimulatedPart], problem: Problem, tokens: Tensor) -> float:
    """Relative output error of the parts of a problem on tokens (T, K) of its input."""
    x, exact = tokens.float(), tokens.float() @ problem.weight.T
    out = sum((replace(part, columns=(0, x.shape[1])).apply(x) for part in parts), torch.zeros_like(exact))
    return float((out - exact).norm() / exact.norm())


def _plain_part(
    values: Tensor,
    plan: PartPlan,
    activations: Grid,
    see: Callable[[Tensor], Tensor],
    rounding: Callable[[Tensor, SimulatedPart], Tensor] | None = None,
) -> SimulatedPart:
    return SimulatedPart(
        plan.rows,
        plan.columns,
        values,
        values.new_ones(values.shape[1]),
        0.0,
        activations,
        values.new_zeros(values.shape[1], 0),
        values.new_zeros(len(values), 0),
        see,
        rounding=rounding,
    )
