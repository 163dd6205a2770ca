"""Changes to `best` that the gate judges: each is `best` but for what its name says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...kernels.reference import requantize_int8
from ...svdq_core.quantize.fit import BEST_TURNS, Fit, branch_weight, fit_part
from ...svdq_core.quantize.gptq import FactoredHessian, choose_damping
from ...svdq_core.quantize.grid import quantize_activations
from ...svdq_core.quantize.part_plan import PartPlan
from ...svdq_core.quantize.problem import Problem
from ...svdq_core.quantize.smooth import FactorFamily, activation_level
from ...svdq_core.quantize.statistics import InputStatistics
from ..evaluate.evaluated_scenes import calibration_scenes
from ..evaluate.linears import STORED, Layer, SimulatedPart
from ..evaluate.network import flux_weights, latents_by_step, load_flux
from ..evaluate.recorded_inputs import CALIBRATION_STEPS, Source, collecting
from .gate_run import GateRun, solve_layers

HELD_OUT_SHARE = 4  # of so many captions, one gives tokens and not correlations
DAMPINGS = (0.03, 0.1, 0.3, 1.0)
CHOICE_TURNS = 1  # of fits that only choose a damping: four layers of the demo, the order is that after 16
FOUR, SIX = 4.0, 6.0  # what the largest value of a group may become in E2M1


def record_split(captions: int, device: torch.device, replicate: int = 0) -> Source:
    """As `record`, but tokens that errors are measured on come from captions that the correlations do not know."""
    model, scenes = load_flux(device), calibration_scenes(captions, device, replicate)
    own = torch.arange(captions, device=device) % HELD_OUT_SHARE == 0
    if captions < HELD_OUT_SHARE:
        raise ValueError(f"{captions} captions recorded, at least {HELD_OUT_SHARE} are needed to hold one out.")
    collectors = []
    for mask in (~own, own):
        part = scenes.where(mask)
        with collecting(model, seed=replicate) as collector:
            for _ in latents_by_step(model, part, part.noise, CALIBRATION_STEPS):
                pass
        collectors.append(collector)
    known, unknown = collectors
    return Source(
        flux_weights(), {n: replace(known.statistics(n), tokens=unknown.statistics(n).tokens) for n in known.names()}
    )


@dataclass(frozen=True)
class Variant:
    """What is different from `best`.

    Args:
        kind: of recording.
        damping: of the Hessian; None: as `best` chooses by the number of tokens; "chosen": by error on the tokens.
        is_centred: correlations about the mean, whose loss goes into the bias.
        has_four_over_six: activations in NVFP4 choose whether their largest value becomes 4 or 6.
        rank: of the branch of a layer, by the run.
    """

    kind: str = "prompts"
    damping: float | str | None = None
    is_centred: bool = False
    has_four_over_six: bool = False
    rank: Callable[[GateRun], Callable[[str], int]] = lambda run: lambda name: 32

    def __call__(self, run: GateRun) -> Mapping[str, Layer]:
        return solve_layers(run, self._solve, run.recorded(self.kind), self.rank(run))

    def _solve(self, layer: str, plans: list[PartPlan], problems: list[Problem]) -> list[SimulatedPart]:
        statistics = problems[0].statistics
        smooth = search_factor(problems)
        hessian, count = statistics.hessian()
        if self.is_centred:
            hessian = hessian - torch.outer(_mean(statistics), _mean(statistics))
        damping = self._damping(problems, smooth, hessian, count)
        factored = _factor(hessian, damping, smooth)
        found = []
        for plan, problem in zip(plans, problems, strict=True):
            fit = fit_part(problem, smooth, BEST_TURNS, factored)
            part = SimulatedPart.of_fit(fit, problem, plan.rows, plan.columns, Tensor.float)
            if self.is_centred:
                part = replace(part, offset=lost_mean(fit, problem))
            if self.has_four_over_six and problem.arithmetic.weights.kind == "e2m1":
                part = replace(part, rounding=round_four_over_six)
            found.append(part)
        return found

    def _damping(self, problems: list[Problem], smooth: Tensor, hessian: Tensor, count: int) -> float:
        if self.damping is None:
            return choose_damping(count, len(smooth))
        if isinstance(self.damping, float):
            return self.damping
        errors = {}
        for damping in DAMPINGS:
            factored = _factor(hessian, damping, smooth)
            fits = [fit_part(problem, smooth, CHOICE_TURNS, factored) for problem in problems]
            errors[damping] = sum(f.error(p) ** 2 for f, p in zip(fits, problems, strict=True))
        return min(errors, key=errors.__getitem__)


def search_factor(problems: list[Problem]) -> Tensor:
    """The smoothing factor of parts that share their input, as the pack chooses it."""
    first = problems[0]
    precision = "nvfp4" if first.arithmetic.weights.kind == "e2m1" else "int4"
    level = activation_level(first.statistics, precision)
    family = FactorFamily(torch.cat([p.weight for p in problems]), first.statistics, first.scale_dtype, level)
    return family.search(
        lambda factors: [sum(errors) for errors in zip(*(p.score_factors(factors) for p in problems), strict=True)]
    )[0]


def lost_mean(fit: Fit, problem: Problem) -> Tensor:
    """What the weights lose of the output's mean: (N,) float32."""
    values = fit.values
    if problem.arithmetic.requantize:
        codes, scales = requantize_int8(values)
        values = codes.float() * scales[:, None]
    restored = (values + branch_weight(fit.proj_down, fit.proj_up, fit.smooth)) / fit.smooth
    return (problem.weight - restored) @ _mean(problem.statistics)


def round_four_over_six(x_hat: Tensor, part: SimulatedPart) -> Tensor:
    """NVFP4 activations (T, K) whose groups take the better of two scales: largest value to 6, or to 4."""
    assert part.activations is not None
    grid = part.activations
    usual = quantize_activations(x_hat, grid, STORED)
    groups = grid.groups(x_hat)
    scales = (groups.abs().amax(dim=-1, keepdim=True) / FOUR).clamp(max=448.0).to(torch.float8_e4m3fn).float()
    wider = (grid.snap(groups / torch.where(scales > 0, scales, 1.0)) * scales).flatten(-2)
    errors = [grid.groups((rounded - x_hat).square()).sum(dim=-1, keepdim=True) for rounded in (usual, wider)]
    return torch.where(errors[1] < errors[0], grid.groups(wider), grid.groups(usual)).flatten(-2)


def _mean(statistics: InputStatistics) -> Tensor:
    assert statistics.mean is not None, "recordings of the gate hold means"
    return statistics.mean


def _factor(hessian: Tensor, damping: float, smooth: Tensor) -> FactoredHessian:
    factored = FactoredHessian.factor(hessian, damping, smooth)
    assert factored is not None, "a Hessian is positive definite once damped"
    return factored
