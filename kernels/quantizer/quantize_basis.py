"""The inverse root of a small Gram matrix, what turns columns into orthonormal ones.

    Y^T Y = L L^T,  Y (L^-1)^T  has orthonormal columns

A program keeps a matrix and the inverse of its root in registers; a general solver spends far longer on starting
than on such sizes. Reference: torch.linalg.cholesky and solve_triangular.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching.launch import launch

WARPS = 8
LARGEST = 64  # columns that fit into registers
TINY = tl.constexpr(1e-30)  # on the diagonal, for a matrix of zeros


@triton.jit
def _inverse_root_kernel(
    gram_ptr,  # (B, R, R) float64
    out_ptr,  # (B, R, R) float64
    R,
    JITTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.arange(0, BLOCK)
    rows, columns = index[:, None], index[None, :]
    mask = (rows < R) & (columns < R)
    start = tl.program_id(0) * R * R
    matrix = tl.load(gram_ptr + start + rows * R + columns, mask=mask, other=0.0)
    mean = tl.sum(tl.sum(tl.where(rows == columns, matrix, 0.0), axis=1), axis=0) / R
    matrix += tl.where(rows == columns, mean * JITTER + TINY, 0.0)
    inverse = tl.where(rows == columns, 1.0, 0.0).to(tl.float64)
    for k in range(R):
        column = tl.sum(tl.where(columns == k, matrix, 0.0), axis=1)
        pivot = tl.sum(tl.where(index == k, column, 0.0), axis=0)
        scale = 1.0 / tl.sqrt(pivot)
        root = tl.where(index >= k, column * scale, 0.0)
        row = tl.sum(tl.where(rows == k, inverse, 0.0), axis=0) * scale
        below = tl.where(index > k, root, 0.0)
        inverse = tl.where(rows == k, row[None, :], inverse - below[:, None] * row[None, :])
        matrix -= root[:, None] * root[None, :]
    tl.store(out_ptr + start + columns * R + rows, inverse, mask=mask)


def inverse_root(gram: Tensor, jitter: float) -> Tensor:
    """(L^-1)^T of gram + jitter * mean diagonal = L L^T.

    Args:
        gram: (..., R, R) float64, one or a batch, each symmetric, positive semidefinite, R at most 64.
        jitter: dimensionless.

    Returns:
        (..., R, R) float64, upper triangular.

    Raises:
        ValueError: the matrix is too large.
    """
    size = gram.shape[-1]
    if size > LARGEST:
        raise ValueError(f"{size} columns, expected at most {LARGEST}")
    out = torch.empty_like(gram)
    launch(
        _inverse_root_kernel,
        (gram.numel() // (size * size),),
        (gram.contiguous(), out, size),
        {
            "JITTER": jitter,
            "BLOCK": max(16, triton.next_power_of_2(size)),
            "num_warps": WARPS,
        },
    )
    return out
