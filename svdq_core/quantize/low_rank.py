"""Step 2: the low-rank branch, a truncated singular value decomposition by subspace iteration.

Source: Halko, Martinsson, Tropp, arXiv:0909.4061. Only products with the matrix, and one small Cholesky factorization a
step: on a GPU a small eigenvalue problem or Householder's method would take longer than all the rest.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.gpus import why_no_triton
from ...kernels.ladder import descend

# Steps from a random start, and from the branch of an earlier turn. Residual over that of the exact decomposition, from
# a random start, synthetic weights of 1024 to 3072 rows: 1.05, 1.013, 1.003 and 1.001 after 1, 2, 4 and 6 steps; of 128
# rows with a flat spectrum 1.07 after 2, 1.010 after 6.
COLD_STEPS = 6
WARM_STEPS = 2
KERNEL_COLUMNS = 64  # that kernels/quantizer/quantize_basis.py takes
JITTER = 1e-11  # of a float64 Gram matrix's mean diagonal: above its rounding errors, below float32's squared


def draw_test_matrix(in_features: int, rank: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard-normal (K, min(rank, K)) float32, drawn on the CPU so that every device gets the same numbers."""
    return torch.randn(in_features, min(rank, in_features), generator=generator).to(device)


class Rotated(NamedTuple):
    """matrix[:, order] @ root, a product that is never made: N K K multiplications, against N K R for each use.

    Args:
        matrix: (N, K) float32. order: (K,) int64. root: (K, K) float32.
    """

    matrix: Tensor
    order: Tensor
    root: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    def made(self) -> Tensor:
        """(N, K), after all."""
        return self.matrix[:, self.order] @ self.root

    def times(self, right: Tensor) -> Tensor:
        """Itself times (K, R)."""
        rotated = torch.empty_like(right)
        rotated[self.order] = self.root @ right
        return self.matrix @ rotated

    def transposed_times(self, right: Tensor) -> Tensor:
        """Its transpose times (N, R)."""
        return self.root.T @ (self.matrix.T @ right)[self.order]


def truncated_svd(matrix: Tensor | Rotated, rank: int, start: Tensor, steps: int = COLD_STEPS) -> tuple[Tensor, Tensor]:
    """The best low-rank approximation, nearly: (..., N, K) float32 -> up (..., N, R), down (..., R, K) float32.

    `down` has orthonormal rows, in no particular order. R is min(rank, N, K).

    Args:
        matrix: one, or a batch of them.
        start: (K, rank) float32, what `down` is guessed to span, or random.
        steps: passes over the matrix and back; each sharpens the decay of the spectrum.
    """
    *batch, rows, columns = matrix.shape
    rank = min(rank, rows, columns)
    if rank == 0:
        return start.new_zeros(*batch, rows, 0), start.new_zeros(*batch, 0, columns)
    down = start[:, :rank]
    if isinstance(matrix, Rotated):
        for _ in range(steps):
            down = _orthonormalize(matrix.transposed_times(matrix.times(down)))
        return matrix.times(down), down.T
    for _ in range(steps):
        down = _orthonormalize(matrix.mT @ (matrix @ down))
    return matrix @ down, down.mT


def exact_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """As truncated_svd, from the float64 eigenvectors of the smaller Gram matrix."""
    rank = min(rank, *matrix.shape)
    wide = matrix.double()
    if matrix.shape[0] < matrix.shape[1]:
        vectors = torch.linalg.eigh(wide @ wide.T)[1].flip(-1)[:, :rank]
        down, triangle = torch.linalg.qr((vectors.T @ wide).T)
        return (vectors @ triangle.T).float(), down.T.float()
    vectors = torch.linalg.eigh(wide.T @ wide)[1].flip(-1)[:, :rank]
    return (wide @ vectors).float(), vectors.T.float()


def _orthonormalize(matrix: Tensor) -> Tensor:
    """Orthonormal columns that span those of a matrix (..., M, R), float32; columns of zeros stay zeros."""
    wide = matrix.double()
    return (wide @ _inverse_root(wide.mT @ wide)).float()


def _inverse_root(gram: Tensor) -> Tensor:
    """(..., R, R) float64 -> what makes columns of this Gram matrix orthonormal, float64."""

    def kernel() -> Tensor:
        from ...kernels.quantizer.quantize_basis import inverse_root

        return inverse_root(gram, JITTER)

    def library() -> Tensor:
        damped = gram.clone()
        diagonal = damped.diagonal(dim1=-2, dim2=-1)
        diagonal.add_(JITTER * diagonal.mean(dim=-1, keepdim=True) + torch.finfo(torch.float64).tiny)
        root = torch.linalg.cholesky_ex(damped)[0]
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_triangular(root, eye, upper=False).mT

    if gram.shape[-1] > KERNEL_COLUMNS or why_no_triton(gram.device) is not None:
        return library()
    return descend(
        gram.device, [("a small factorization in Triton", kernel), ("the same by torch's libraries", library)]
    )
