"""Muon, for the matrices of a small transformer, all of them in one batched product.

Every matrix is cut into square blocks as wide as the model: so query, key and value are apart, and one batch of equal
matrices holds everything. Source of the method and of the coefficients: Keller Jordan et al., "Muon", 2024; of the
scale that lets it share AdamW's learning rate: Liu et al., "Muon is Scalable for LLM Training", arXiv:2502.16982.
"""

import math

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_UPDATE_RMS = 0.2  # what AdamW's own updates have


class Muon:
    """Momentum whose update has equal singular values.

    Args:
        matrices: parameters of two dimensions, both multiples of `block`.
        block: side of the squares that are orthogonalized.
        decay: weight decay, as in AdamW.
    """

    def __init__(self, matrices: list[Tensor], block: int, momentum: float = 0.95, decay: float = 0.02) -> None:
        self.matrices, self.block, self.momentum, self.decay = matrices, block, momentum, decay
        blocks = sum(matrix.numel() for matrix in matrices) // block**2
        self.average = torch.zeros(blocks, block, block, device=matrices[0].device)

    @torch.no_grad()
    def step(self, gradients: list[Tensor], rate: float) -> None:
        """Change the matrices in place, from their gradients in the same order."""
        gradient = torch.cat([self._cut(part) for part in gradients])
        self.average.lerp_(gradient, 1 - self.momentum)
        update = orthogonalize(gradient.lerp(self.average, self.momentum)).to(gradient.dtype)
        updates, start = [], 0
        for matrix in self.matrices:
            count = matrix.numel() // self.block**2
            updates.append(self._paste(update[start : start + count], matrix.shape))
            start += count
        torch._foreach_mul_(self.matrices, 1 - rate * self.decay)
        torch._foreach_add_(self.matrices, updates, alpha=-rate * _UPDATE_RMS * math.sqrt(self.block))

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.average.copy_(state["average"])

    def _cut(self, matrix: Tensor) -> Tensor:
        rows, columns = (size // self.block for size in matrix.shape)
        return matrix.view(rows, self.block, columns, self.block).transpose(1, 2).flatten(0, 1)

    def _paste(self, blocks: Tensor, shape: torch.Size) -> Tensor:
        rows, columns = (size // self.block for size in shape)
        return blocks.view(rows, columns, self.block, self.block).transpose(1, 2).reshape(shape)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Push all singular values of (N, n, n) toward 1 (they land between about 0.7 and 1.2)."""
    first, third, fifth = _COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = first * x + torch.baddbmm(third * square, square, square, alpha=fifth) @ x
    return x
