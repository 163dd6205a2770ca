"""The two matrices of a LoKr, whose Kronecker product is its difference."""

import torch
from comfy.weight_adapter import LoKrAdapter
from torch import Tensor


def kron_shapes(value: LoKrAdapter) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, columns) of the two matrices."""
    left, right, _, left_a, left_b, right_a, right_b = value.weights[:7]
    return (
        (left_a.shape[0], left_b.shape[1]) if left is None else tuple(left.shape[:2]),
        (right_a.shape[0], right_b.shape[1]) if right is None else tuple(right.shape[:2]),
    )


def kron_scale(value: LoKrAdapter) -> float:
    """alpha over the rank, where one of them is given in halves."""
    left, right, alpha, _, left_b, _, right_b = value.weights[:7]
    rank = right_b.shape[0] if right is None else left_b.shape[0] if left is None else None
    return 1.0 if alpha is None or not rank else float(alpha) / rank


def kron_matrices(value: LoKrAdapter, device: torch.device) -> tuple[Tensor, Tensor]:
    """left and right, float32."""
    left, right, _, *halves = (t.to(device).float() if isinstance(t, Tensor) else t for t in value.weights[:7])
    return halves[0] @ halves[1] if left is None else left, halves[2] @ halves[3] if right is None else right
