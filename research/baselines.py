"""Other ways to reach 4 bits, from the same steps, so that a comparison compares methods and not programs.

    nearest               round to nearest
    smoothquant           smoothing, then round to nearest: arXiv:2211.10438
    hadamard              block Hadamard rotation, then round to nearest: after QuaRot, arXiv:2404.00456
    quarot_gptq           the same with GPTQ, scales of the weights by least squared error, as QuaRot has them
    nf4                   4-bit normal-float weights, 16-bit activations: arXiv:2305.14314
    lorc                  low-rank branch fitted to the rounding error: after LoRC, arXiv:2303.08302
    svd                   low-rank branch without smoothing
    paper                 SVDQuant as in arXiv:2411.05007: smoothing, one decomposition, round to nearest
    deepcompressor        as its authors' program: decomposition and rounding in turns until the error rises
    deepcompressor_gptq   the same, the last rounding by GPTQ
    fast, best            ours

DeepCompressor scores on the outputs of attention and blocks; here each method scores on the layer itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..svdq_core.quantize.fit import BEST_TURNS, Fit, branch_weight, fit_part, store_branch
from ..svdq_core.quantize.gptq import FactoredHessian, choose_damping, round_gptq
from ..svdq_core.quantize.grid import NF4, Arithmetic, Grid
from ..svdq_core.quantize.problem import Problem
from ..svdq_core.quantize.round import fit_scales, round_to_units
from ..svdq_core.quantize.smooth import Exponents, FactorFamily, activation_level
from ..svdq_core.quantize.statistics import InputStatistics

PAPER_TOKENS = 1024
PAPER_GRID = (
    Exponents("absmax", 0.0, 0.0),
    *(Exponents("absmax", step / 20, 0.0) for step in range(1, 20)),
    *(Exponents("absmax", step / 20, 1 - step / 20) for step in range(1, 20)),
)
PAPER_TURNS = 100
PAPER_DAMPING = 0.01
HADAMARD_BLOCK = 256


@dataclass(frozen=True)
class Method:
    """A way to quantize one part.

    Args:
        adapt: what it changes about the problem before anything else; apply it to held-out data, too.
        solve: the adapted problem -> its quantized form.
        see: what its runtime does to the input before anything else, (..., K) -> (..., K) float32; adapt does the same
            to the problem's tokens.
    """

    adapt: Callable[[Problem], Problem]
    solve: Callable[[Problem], Fit]
    see: Callable[[Tensor], Tensor] = Tensor.float


def with_bits(problem: Problem, weight_bits: int, act_bits: int) -> Problem:
    """The problem in integer arithmetic of other widths, 2 to 8 bits, as the paper's tables have them.

    Up to 4 bits: groups of 64. Above: one scale for an output channel and for a token.
    """

    def grid(bits: int, unsigned: bool = False) -> Grid:
        top = 2 ** (bits if unsigned else bits - 1) - 1
        return Grid("int", 0 if unsigned else -top, top, 64 if bits <= 4 else None)

    return replace(problem, arithmetic=Arithmetic(grid(weight_bits), grid(act_bits, problem.shift != 0)))


def _as_is(problem: Problem) -> Problem:
    return replace(problem, score_tokens=max(problem.score_tokens, PAPER_TOKENS))


def _without_branch(problem: Problem) -> Problem:
    return replace(_as_is(problem), rank=0)


def _with_16_bit_activations(problem: Problem) -> Problem:
    return replace(_without_branch(problem), arithmetic=Arithmetic(NF4, None), shift=0.0)


@lru_cache
def _hadamard(size: int, device: torch.device) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix.to(device) / size**0.5


def rotate(values: Tensor) -> Tensor:
    """Values (..., K) in the basis of a block Hadamard matrix, its own inverse: float32."""
    columns = values.shape[-1]
    block = min(HADAMARD_BLOCK, columns & -columns)
    return (values.float().unflatten(-1, (-1, block)) @ _hadamard(block, values.device)).flatten(-2)


def _rotated(problem: Problem) -> Problem:
    """Weight and input rotated, the shift taken back: it is not constant there."""
    grid = problem.arithmetic.activations
    if problem.shift and grid is not None and grid.low == 0:
        top = (grid.high - 1) / 2
        grid = replace(grid, low=-top, high=top)
    statistics = InputStatistics.from_tokens(rotate(problem.statistics.tokens))
    if (0, problem.statistics.channels) in problem.statistics.hessians:
        hessian, count = problem.statistics.hessian()
        hessians = {(0, len(hessian)): rotate(rotate(hessian).T)}
        statistics = replace(statistics, hessians=hessians, hessian_count=count)
    return replace(
        _without_branch(problem),
        weight=rotate(problem.weight),
        statistics=statistics,
        arithmetic=replace(problem.arithmetic, activations=grid),
        shift=0.0,
    )


def _round(
    problem: Problem, smooth: Tensor, branch: tuple[Tensor, Tensor], hessian: FactoredHessian | None = None
) -> Fit:
    """Absmax scales and codes of what the stored branch (proj_down, proj_up) leaves over."""
    grid = problem.arithmetic.weights
    residual = problem.weight * smooth - branch_weight(*branch, smooth)
    scales = fit_scales(residual, grid, problem.scale_dtype, sweep=False)
    units = round_to_units(residual, scales, grid) if hessian is None else round_gptq(residual, scales, grid, hessian)
    return Fit(units, scales, grid, smooth, *branch)


def _decompose(problem: Problem, matrix: Tensor, smooth: Tensor) -> tuple[Tensor, Tensor]:
    return store_branch(*problem.decompose(matrix), smooth, problem.scale_dtype)


def _ones(problem: Problem) -> Tensor:
    return torch.ones_like(problem.weight[0])


def _search(problem: Problem, candidates: tuple[Exponents, ...] | None) -> Tensor:
    precision = "nvfp4" if problem.arithmetic.weights.kind == "e2m1" else "int4"
    level = activation_level(problem.statistics, precision)
    family = FactorFamily(problem.weight, problem.statistics, problem.scale_dtype, level)
    return family.search(problem.score_factors, candidates)[0]


def _factor_hessian(problem: Problem, smooth: Tensor, damping: float | None = None) -> FactoredHessian:
    hessian, count = problem.statistics.hessian()
    damping = choose_damping(count, len(smooth)) if damping is None else damping
    factored = FactoredHessian.factor(hessian, damping, smooth)
    assert factored is not None, "a Hessian is positive definite once damped"
    return factored


def _solve_nearest(problem: Problem) -> Fit:
    smooth = _ones(problem)
    return _round(problem, smooth, _decompose(problem, problem.weight, smooth))


def _solve_rotated_gptq(problem: Problem) -> Fit:
    grid, smooth = problem.arithmetic.weights, _ones(problem)
    hessian = _factor_hessian(problem, smooth, PAPER_DAMPING)
    scales = fit_scales(problem.weight, grid, problem.scale_dtype)
    units = round_gptq(problem.weight, scales, grid, hessian)
    return Fit(units, scales, grid, smooth, *_decompose(problem, problem.weight, smooth))


def _solve_smoothed(problem: Problem) -> Fit:
    smooth = _search(problem, PAPER_GRID)
    return _round(problem, smooth, _decompose(problem, problem.weight * smooth, smooth))


def _solve_lorc(problem: Problem) -> Fit:
    smooth = _ones(problem)
    nothing = (problem.weight.new_zeros(problem.weight.shape[1], 0), problem.weight.new_zeros(len(problem.weight), 0))
    rounded = _round(problem, smooth, nothing)
    proj_down, proj_up = _decompose(problem, problem.weight - rounded.values, smooth)
    return replace(rounded, proj_down=proj_down, proj_up=proj_up)


def _solve_deepcompressor(problem: Problem) -> Fit:
    best = _solve_smoothed(problem)
    best_error, current = best.error(problem), best
    for _ in range(PAPER_TURNS - 1):
        branch = _decompose(problem, problem.weight * best.smooth - current.values, best.smooth)
        current = _round(problem, best.smooth, branch)
        error = current.error(problem)
        if error > best_error:
            break
        best, best_error = current, error
    return best


def _solve_deepcompressor_gptq(problem: Problem) -> Fit:
    fit = _solve_deepcompressor(problem)
    return _round(
        problem, fit.smooth, (fit.proj_down, fit.proj_up), _factor_hessian(problem, fit.smooth, PAPER_DAMPING)
    )


def _solve_fast(problem: Problem) -> Fit:
    return fit_part(problem, _search(problem, None))


def _solve_best(problem: Problem) -> Fit:
    smooth = _search(problem, None)
    return fit_part(problem, smooth, BEST_TURNS, _factor_hessian(problem, smooth))


METHODS = {
    "nearest": Method(_without_branch, _solve_nearest),
    "smoothquant": Method(_without_branch, _solve_smoothed),
    "hadamard": Method(_rotated, _solve_nearest, rotate),
    "quarot_gptq": Method(_rotated, _solve_rotated_gptq, rotate),
    "nf4": Method(_with_16_bit_activations, _solve_nearest),
    "lorc": Method(_as_is, _solve_lorc),
    "svd": Method(_as_is, _solve_nearest),
    "paper": Method(_as_is, _solve_smoothed),
    "deepcompressor": Method(_as_is, _solve_deepcompressor),
    "deepcompressor_gptq": Method(_as_is, _solve_deepcompressor_gptq),
    "fast": Method(lambda problem: problem, _solve_fast),
    "best": Method(lambda problem: problem, _solve_best),
}


def held_out_error(method: str, problem: Problem, tokens: Tensor) -> float:
    """Relative output error on tokens (T, K) that the method did not see."""
    way = METHODS[method]
    fit = way.solve(way.adapt(problem))
    unseen = replace(problem, statistics=InputStatistics.from_tokens(tokens), score_tokens=len(tokens))
    return fit.error(way.adapt(unseen))
