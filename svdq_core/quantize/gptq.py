"""Step 3 with data: rounding column by column, each error passed on to the columns that can make up for it.

Source: GPTQ, arXiv:2210.17323. The group scales are fixed beforehand, so columns may go in any order: those with the
largest inputs first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.gpus import why_no_triton
from ...kernels.ladder import descend
from .coarse_products import coarse_products
from .grid import Grid
from .round import ROWS, GroupScales

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
    def factor(hessian: Tensor, damping: float, smooth: Tensor | None = None) -> "FactoredHessian | None":
        """Factor a (K, K) float32 matrix; None if it stays indefinite up to MAX_DAMPING times its mean diagonal.

        At most four such matrices are in memory at once: 1.07 GB each where K is 16384.

        Args:
            damping: what to add to the diagonal, in units of its mean; raised tenfold while the factorization fails.
            smooth: (K,) the factor that the input is divided by; None: it is taken as it is.
        """
        if smooth is not None:
            hessian = hessian / smooth
            hessian /= smooth[:, None]
        diagonal = hessian.diagonal()
        order = diagonal.argsort(descending=True, stable=True)
        mean = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
        # Factored from the last row upwards, the root is upper triangular and its inverse is what rounding needs.
        rising = order.flip(0)
        permuted = hessian.index_select(0, rising)
        del hessian, diagonal
        permuted = permuted.index_select(1, rising)
        diagonal = permuted.diagonal().clone()
        while damping <= MAX_DAMPING:
            permuted.diagonal().copy_(diagonal + damping * mean)
            root, failed = torch.linalg.cholesky_ex(permuted)
            if not bool(failed):
                del permuted
                root = root.flip(0, 1)
                eye = torch.eye(len(root), device=root.device)
                return FactoredHessian(order, root, torch.linalg.solve_triangular(root, eye, upper=True))
            damping *= 10
        return None


def round_gptq(residual: Tensor, scales: GroupScales, grid: Grid, hessian: FactoredHessian) -> Tensor:
    """Units (N, K) float32 of a residual (N, K) float32 that keep its product with the inputs."""
    group_of = hessian.order // (grid.group_size or residual.shape[1])
    chunks = zip(residual.split(ROWS), scales.effective().split(ROWS), strict=True)
    units = [_round_rows(rows, effective, group_of, grid, hessian) for rows, effective in chunks]
    return units[0] if len(units) == 1 else torch.cat(units)


def _round_rows(residual: Tensor, effective: Tensor, group_of: Tensor, grid: Grid, hessian: FactoredHessian) -> Tensor:
    order, inverse = hessian.order, hessian.inverse
    # One row for each column of the weight: each step then reads and writes consecutive memory.
    left = residual.T[order]
    units = torch.empty_like(left)
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        column_scales = effective.T[group_of[start:stop]].contiguous()
        errors = _round_block(left[start:stop], inverse[start:stop, start:stop], column_scales, grid, units[start:stop])
        with coarse_products(left.device):  # beside the steps of 4 bits, what is passed on has bits enough
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
