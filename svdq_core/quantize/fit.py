"""Steps 2 and 3 together: low-rank branch and rounded residual of one part, in turns.

Each turn rounds what the branch leaves over and then fits the branch to what the rounding lost, weighted by how large
each input channel is. The turn with the least output error is kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SVDQuantError
from .problem import Problem
from .round import GroupScales, fit_scales, round_to_units, units_to_values

# Trained tiny FLUX, W4A4, standard-normal tokens: error 0.099, 0.092, 0.091, 0.090, 0.090 after 1, 2, 3, 5, 8 turns.
FAST_TURNS = 4


def overflow_error(name: str, dtype: torch.dtype) -> SVDQuantError:
    """What to raise when a scale or factor of layer `name` is not finite in `dtype`."""
    dtype_name = str(dtype).removeprefix("torch.")
    return SVDQuantError(f"{name}: scales or factors exceed the range of {dtype_name}. Quantize with bfloat16 scales.")


@dataclass(frozen=True)
class Fit:
    """A quantized part before packing.

    Args:
        units: (N, K) float32 residual in units of its scales.
        scales: of the residual's groups.
        values: (N, K) float32 units times scales, in smoothed coordinates.
        smooth: (K,) float32, exact in 16 bits.
        proj_down: (K, R), proj_up: (N, R) in spec.scale_dtype; proj_down sees the raw input.
    """

    units: Tensor
    scales: GroupScales
    values: Tensor
    smooth: Tensor
    proj_down: Tensor
    proj_up: Tensor


def fit_part(problem: Problem, smooth: Tensor, turns: int = FAST_TURNS) -> Fit:
    """Low-rank branch, scales and codes for a smoothing factor.

    Args:
        smooth: (K,) float32, exact in spec.scale_dtype.
        turns: at least 1; 1 is plain SVDQuant.
    """
    spec, grid = problem.spec, problem.grid
    smoothed = problem.weight * smooth
    # Mean square of each smoothed input channel: what an error in that column of the weight costs.
    importance = problem.statistics.mean_square / smooth.square()
    importance = torch.where(importance > 0, importance, torch.ones_like(importance))
    best, best_error = None, float("inf")
    proj_down, proj_up = _store(*problem.decompose(smoothed), smooth, spec.scale_dtype)
    for _ in range(turns):
        residual = smoothed - proj_up.float() @ (proj_down.float().T * smooth)
        scales = fit_scales(residual, grid, spec.scale_dtype, importance)
        units = round_to_units(residual, scales, grid)
        values = units_to_values(units, scales, grid)
        del residual
        if turns > 1:
            proj_down, proj_up = _refit(problem, smoothed - values, importance, smooth)
        error = problem.squared_error(values, smooth, proj_down, proj_up)
        if error < best_error:
            best, best_error = Fit(units, scales, values, smooth, proj_down, proj_up), error
        if spec.rank == 0:
            break
    if best is None:
        raise overflow_error(problem.name, spec.scale_dtype)
    return best


def _refit(problem: Problem, lost: Tensor, importance: Tensor, smooth: Tensor) -> tuple[Tensor, Tensor]:
    """The branch that minimizes the importance-weighted error of smoothed - values: stored proj_down, proj_up."""
    root = importance.sqrt()
    up, down = problem.decompose(lost * root)
    return _store(up, down / root, smooth, problem.spec.scale_dtype)


def _store(up: Tensor, down: Tensor, smooth: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factors of the smoothed weight as a file holds them: proj_down (K, R) for the raw input, proj_up (N, R)."""
    return (down.double() / smooth.double()).T.to(dtype).contiguous(), up.to(dtype)
