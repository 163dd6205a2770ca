"""Step 3 with data: rounding column by column, each error passed on to the columns that can make up for it.

Source: GPTQ, arXiv:2210.17323. The group scales are fixed beforehand, so columns may go in any order: those with the
largest inputs first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.gpus import why_no_triton
from ...kernels.ladder import descend
from .grid import Grid
from .round import GroupScales

BLOCK = 128  # columns whose errors are passed on within, before one product with all later columns
MAX_DAMPING = 100.0


def choose_damping(count: int, channels: int) -> float:
    """How much of the mean diagonal to add to a Hessian of `count` tokens.

    Few tokens say little about correlations. Held-out error of a 1024-channel layer at W4A8 with 0.1, 0.3, 1 and 3:
    8 tokens a channel 0.0482, 0.0480, 0.0491, 0.0518; half a token 0.0597, 0.0544, 0.0523, 0.0534; nearest 0.0638.
    """
    return min(1.0, max(0.3, 2 * channels / max(1, count)))


@dataclass(frozen=True)
class FactoredHessian:
    """The second moments of a layer's input, factored.

    With P the permutation `order`: P (hessian + damping) P^T = root root^T, root upper triangular.

    Args:
        order: (K,) int64, the columns in the order they are rounded.
        root, inverse: (K, K) float32 upper triangular, inverses of each other.
    """

    order: Tensor
    root: Tensor
    inverse: Tensor

    @staticmethod
    def factor(hessian: Tensor, damping: float) -> "FactoredHessian | None":
        """Factor a (K, K) float32 matrix; None if it stays indefinite up to MAX_DAMPING times its mean diagonal.

        Args:
            damping: what to add to the diagonal, in units of its mean; raised tenfold while the factorization fails.
        """
        diagonal = hessian.diagonal()
        order = diagonal.argsort(descending=True, stable=True)
        permuted = hessian[order][:, order]
        mean = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
        while damping <= MAX_DAMPING:
            # Factored from the last row upwards, the root is upper triangular and its inverse is what rounding needs.
            damped = permuted.flip(0, 1)
            damped.diagonal().add_(damping * mean)
            root, failed = torch.linalg.cholesky_ex(damped)
            if not bool(failed):
                root = root.flip(0, 1)
                eye = torch.eye(len(root), device=root.device)
                return FactoredHessian(order, root, torch.linalg.solve_triangular(root, eye, upper=True))
            damping *= 10
        return None


def round_gptq(residual: Tensor, scales: GroupScales, grid: Grid, hessian: FactoredHessian) -> Tensor:
    """Units (N, K) float32 of a residual (N, K) float32 that keep its product with the inputs."""
    order, inverse = hessian.order, hessian.inverse
    group_of = order // (grid.group_size or residual.shape[1])
    effective = scales.effective()
    # One row for each column of the weight: each step then reads and writes consecutive memory.
    left = residual.T[order]
    units = torch.empty_like(left)
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        column_scales = effective.T[group_of[start:stop]].contiguous()
        errors = _round_block(left[start:stop], inverse[start:stop, start:stop], column_scales, grid, units[start:stop])
        left[stop:].addmm_(inverse[start:stop, stop:].T, errors, alpha=-1)
    restored = torch.empty_like(units)
    restored[order] = units
    return restored.T.contiguous()


def _round_block(left: Tensor, inverse: Tensor, scales: Tensor, grid: Grid, units: Tensor) -> Tensor:
    """Errors (C, N) of some columns, written into `units` (C, N); see kernels/quantizer/quantize_weight.py."""

    def kernel() -> Tensor:
        from ...kernels.quantizer.quantize_weight import round_columns

        return round_columns(left, inverse, scales, low=grid.low, high=grid.high, e2m1=grid.kind == "e2m1", units=units)

    def loop() -> Tensor:
        block, errors = left.clone(), torch.empty_like(left)
        for i in range(len(block)):
            units[i] = grid.snap(block[i] / scales[i])
            torch.sub(block[i], units[i] * scales[i], out=errors[i]).div_(inverse[i, i])
            block[i + 1 :].addr_(inverse[i, i + 1 :], errors[i], alpha=-1)
        return errors

    if grid.kind == "nf4" or why_no_triton(left.device) is not None:
        return loop()
    return descend(left.device, [("GPTQ in Triton", kernel), ("GPTQ column by column in torch", loop)])
