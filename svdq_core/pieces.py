"""Several Linears of ComfyUI's model that are one layer in a file, put together again; and row halves exchanged.

The inverse of what checkpoint/source_rows.py takes apart: no bit changes where the pieces come from one layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .layer import Part, QuantizedLayer
from .stack import join_rows, same_bits, slice_rows

_SHARED = ("smooth_factor", "smooth_factor_orig", "proj_down", "wtscale")


def join_pieces(layers: Sequence[QuantizedLayer], alike: bool = False) -> QuantizedLayer | None:
    """Layers on top of each other that read the same tensor, as one; None where they do not share their smoothing.

    Where their low-rank branches have the same proj_down it is kept once, else the branches stand side by side.

    Args:
        alike: only where the branches have the same proj_down.
    """
    if any(len(layer.parts) != 1 for layer in layers) or len({layer.bias is None for layer in layers}) > 1:
        return None
    parts = [layer.parts[0] for layer in layers]
    joined = _join_alike(parts) or (None if alike else join_rows(parts))
    if joined is None:
        return None
    rows = sum(layer.out_features for layer in layers)
    whole = Part(joined.scheme, (0, rows), joined.columns, joined.act_unsigned, joined.tensors)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return QuantizedLayer(layers[0].in_features, rows, (whole,), torch.cat(biases) if biases else None)


def swap_row_halves(layer: QuantizedLayer) -> QuantizedLayer | None:
    """The lower half of a layer's rows on top of the upper; its own inverse. None where that needs several parts."""
    half = layer.out_features // 2
    if len(layer.parts) != 1 or layer.out_features % 2:
        return None
    part = layer.parts[0]
    pieces = [slice_rows(part, half, layer.out_features), slice_rows(part, 0, half)]
    biases = [None] * 2 if layer.bias is None else [layer.bias[half:], layer.bias[:half]]
    return join_pieces([QuantizedLayer(layer.in_features, half, (p,), b) for p, b in zip(pieces, biases, strict=True)])


def _join_alike(parts: Sequence[Part]) -> Part | None:
    """Parts that agree in all that belongs to their inputs, as one; else None."""
    first = parts[0]
    alike = all(
        (part.scheme, part.columns, part.act_unsigned) == (first.scheme, first.columns, first.act_unsigned)
        and part.tensors.keys() == first.tensors.keys()
        and all(same_bits(part[name], first[name]) for name in _SHARED if name in first.tensors)
        and all(tensor.dtype == first[name].dtype for name, tensor in part.tensors.items())
        for part in parts
    )
    if not alike or first.scheme not in ("int4", "nvfp4"):
        return None
    tensors = {}
    for name, tensor in first.tensors.items():
        if name in _SHARED:
            tensors[name] = tensor
        else:
            tensors[name] = _cat([part[name] for part in parts], 1 if name == "wscales" else 0)
    return Part(first.scheme, first.rows, first.columns, first.act_unsigned, tensors)


def _cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    if tensors[0].dtype == torch.float8_e4m3fn:  # as bytes: not every build can move fp8 values
        return torch.cat([t.view(torch.uint8) for t in tensors], dim).view(torch.float8_e4m3fn)
    return torch.cat(list(tensors), dim)
