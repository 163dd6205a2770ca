"""Layers put together of parts, and parts cut or joined to the rectangles that a format wants. Codes never change."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .layer import Part, QuantizedLayer


def stack_rows(parts: Sequence[Part], biases: Sequence[Tensor | None]) -> QuantizedLayer:
    """Parts that share their input, on top of each other; a part without a bias counts as one of zeros."""
    edges = list(pairwise(accumulate((p.out_features for p in parts), initial=0)))
    placed = tuple(
        Part(p.scheme, rows, (0, p.in_features), p.act_unsigned, p.tensors)
        for p, rows in zip(parts, edges, strict=True)
    )
    bias = None
    if any(b is not None for b in biases):
        like = next(b for b in biases if b is not None)
        pieces = [like.new_zeros(p.out_features) if b is None else b for p, b in zip(parts, biases, strict=True)]
        bias = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return QuantizedLayer(parts[0].in_features, edges[-1][1], placed, bias)


def stack_columns(parts: Sequence[Part], biases: Sequence[Tensor | None]) -> QuantizedLayer:
    """Parts whose outputs are summed, side by side.

    The last one's bias is the layer's; an earlier one keeps its own where it holds anything but zeros.
    """
    edges = pairwise(accumulate((p.in_features for p in parts), initial=0))
    placed = []
    for part, bias, columns in zip(parts, biases, edges, strict=True):
        tensors = dict(part.tensors)
        if part is not parts[-1] and bias is not None and _holds_bits(bias):
            tensors["bias"] = bias
        placed.append(Part(part.scheme, (0, part.out_features), columns, part.act_unsigned, tensors))
    return QuantizedLayer(placed[-1].columns[1], parts[0].out_features, tuple(placed), biases[-1])


def _holds_bits(tensor: Tensor) -> bool:
    """Whether any bit is set; unlike a comparison with 0 this sees -0.0, which must come back as it was."""
    return bool(tensor.contiguous().view(torch.uint8).any())
