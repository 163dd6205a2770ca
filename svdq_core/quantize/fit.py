"""Steps 2 and 3 together: low-rank branch and rounded residual of one part, in turns.

Each turn rounds what the branch leaves over, then fits the branch to what the rounding lost, weighed by its cost in the
output: by the size of each input channel, or with all correlations of the input where those are recorded. The turn with
the least output error is kept. Source of the weighing: QERA, arXiv:2410.06040.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SVDQuantError
from .coarse_products import coarse_products
from .gptq import FactoredHessian, round_gptq
from .grid import Grid
from .low_rank import Rotated
from .problem import Problem
from .round import GroupScales, fit_scales, round_to_units, units_to_values

# Trained tiny FLUX, W4A4, standard-normal tokens: error 0.099, 0.092, 0.091, 0.090, 0.090 after 1, 2, 3, 5, 8 turns.
# A turn takes about 4.5 s of a minute for FLUX.1 on an H200.
FAST_TURNS = 3
# With GPTQ and recorded tokens, after 1, 4, 8 and 16 turns: a synthetic layer behind a GELU, W4A8: 0.0532, 0.0503,
# 0.0488, 0.0473; one with outlier channels, NVFP4: 0.0737, 0.0725, 0.0720, 0.0718. Trained tiny FLUX, W4A8, 1, 4 and 8:
# 0.0197, 0.0179, 0.0172.
BEST_TURNS = 16
# Of a channel that no input reaches, as a share of the mean. A quarter of the channels dead, their weights three times
# as large, W4A8: error 0.174 where they counted 1, 0.115 with this, 0.078 where they do not widen the scales either,
# 0.070 where the first branch leaves them out, too; the same layer without them: 0.070.
LEAST_IMPORTANCE = 1e-6


def overflow_error(name: str, dtype: torch.dtype) -> SVDQuantError:
    """What to raise when a scale or factor of layer `name` is not finite in `dtype`."""
    dtype_name = str(dtype).removeprefix("torch.")
    return SVDQuantError(f"{name}: scales or factors exceed the range of {dtype_name}. Quantize with bfloat16 scales.")


@dataclass(frozen=True)
class Fit:
    """A quantized part before packing.

    Args:
        units: (N, K) residual in units of its scales; bfloat16 where that holds them exactly, else float32.
        scales: of the residual's groups. grid: of the units.
        smooth: (K,) float32, exact in 16 bits.
        proj_down: (K, R), proj_up: (N, R) in 16 bits; proj_down sees the raw input.
    """

    units: Tensor
    scales: GroupScales
    grid: Grid
    smooth: Tensor
    proj_down: Tensor
    proj_up: Tensor

    @property
    def values(self) -> Tensor:
        """(N, K) float32: units times scales, in smoothed coordinates. Made anew each time: it is large."""
        return units_to_values(self.units.float(), self.scales, self.grid)

    def error(self, problem: Problem) -> float:
        """Relative output error on the problem's sample."""
        return problem.relative_error(self.values, self.smooth, self.proj_down, self.proj_up)


def column_importance(problem: Problem, smooth: Tensor) -> Tensor:
    """Mean square of each smoothed input channel, what an error in that column of the weight costs: (K,) float32.

    At least LEAST_IMPORTANCE of the mean, since the branch divides by its root; all ones for an input of zeros.
    """
    importance = problem.statistics.mean_square / smooth.square()
    mean = importance.mean()
    return torch.where(mean > 0, importance.clamp(min=LEAST_IMPORTANCE * mean), torch.ones_like(importance))


def _dead_channels(importance: Tensor) -> Tensor | None:
    """(K,) bool, which channels no input reaches; None: there are none."""
    dead = importance <= LEAST_IMPORTANCE * importance.mean()
    return dead if bool(dead.any()) else None


def _without(values: Tensor, dead: Tensor | None) -> Tensor:
    """Values (N, K) with zeros for dead channels: neither branch nor scales are to be spent on them."""
    return values if dead is None else values.masked_fill(dead, 0.0)


def store_branch(up: Tensor, down: Tensor, smooth: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factors of the smoothed weight as a file holds them: proj_down (K, R) for the raw input, proj_up (N, R)."""
    return (down.double() / smooth.double()).T.to(dtype).contiguous(), up.to(dtype)


def branch_weight(proj_down: Tensor, proj_up: Tensor, smooth: Tensor) -> Tensor:
    """What the stored branch contributes to the smoothed weight: (N, K) float32."""
    return proj_up.float() @ (proj_down.float().T * smooth)


def fit_part(problem: Problem, smooth: Tensor, turns: int = FAST_TURNS, hessian: FactoredHessian | None = None) -> Fit:
    """Low-rank branch, scales and codes for a smoothing factor.

    Args:
        smooth: (K,) float32, exact in problem.scale_dtype.
        turns: at least 1.
        hessian: of the smoothed input: rounds with GPTQ and weighs with correlations; None: nearest, channel sizes.
    """
    grid, dtype = problem.arithmetic.weights, problem.scale_dtype
    smoothed = problem.weight * smooth
    importance = column_importance(problem, smooth)
    dead = _dead_channels(importance)
    best, best_error = None, float("inf")
    assert len(problem.target), "made here, in float32"
    up, down = problem.decompose(_without(smoothed, dead))
    proj_down, proj_up = store_branch(up, down, smooth, dtype)
    for _ in range(turns):
        residual = branch_weight(proj_down, proj_up, smooth)
        torch.sub(smoothed, residual, out=residual)
        scales = fit_scales(_without(residual, dead), grid, dtype, importance)
        if hessian is None:
            units = round_to_units(residual, scales, grid)
        else:
            units = round_gptq(residual, scales, grid, hessian)
        del residual
        values = units_to_values(units, scales, grid)
        lost = _without(smoothed - values, dead)
        up, down = _fit_branch(problem, lost, down, importance=importance, hessian=hessian)
        del lost
        proj_down, proj_up = store_branch(up, down, smooth, dtype)
        with coarse_products(values.device):
            error = problem.squared_error(values, smooth, proj_down, proj_up)
        if error < best_error:
            kept = units.bfloat16() if grid.fits_bfloat16 else units
            best, best_error = Fit(kept, scales, grid, smooth, proj_down, proj_up), error
        del units, values
        if problem.rank == 0:
            break
    if best is None:
        raise overflow_error(problem.name, dtype)
    return best


def _fit_branch(
    problem: Problem, lost: Tensor, guess: Tensor, *, importance: Tensor, hessian: FactoredHessian | None
) -> tuple[Tensor, Tensor]:
    """The branch that minimizes the output error of `lost` (N, K): up (N, R), down (R, K), in smoothed coordinates.

    `lost` may be overwritten.

    Args:
        guess: (R, K) the branch of the turn before.
    """
    if hessian is None:
        root = importance.sqrt()
        up, down = problem.decompose(lost.mul_(root), guess * root)
        return up, down / root
    order, root = hessian.order, hessian.root
    up, down = problem.decompose(Rotated(lost, order, root), guess[:, order] @ root)
    restored = torch.empty_like(down)
    restored[:, order] = down @ hessian.inverse
    return up, restored
