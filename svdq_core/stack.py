"""Layers put together of parts, and parts cut or joined to the rectangles that a format wants. Codes never change."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .fragment_order import as_rows
from .layer import GROUP_SIZE, Part, QuantizedLayer

Span = tuple[int, int]


def stack_rows(parts: Sequence[Part], biases: Sequence[Tensor | None]) -> QuantizedLayer:
    """Parts that share their input, on top of each other; either all have a bias or none."""
    edges = list(pairwise(accumulate((p.out_features for p in parts), initial=0)))
    placed = tuple(
        Part(p.scheme, rows, (0, p.in_features), p.act_unsigned, p.tensors)
        for p, rows in zip(parts, edges, strict=True)
    )
    pieces = [bias for bias in biases if bias is not None]
    bias = torch.cat(pieces) if len(pieces) > 1 else pieces[0] if pieces else None
    return QuantizedLayer(parts[0].in_features, edges[-1][1], placed, bias)


def stack_columns(parts: Sequence[Part], biases: Sequence[Tensor | None]) -> QuantizedLayer:
    """Parts whose outputs are summed, side by side.

    The last one's bias is the layer's; an earlier one keeps its own where it holds anything but zeros.
    """
    edges = pairwise(accumulate((p.in_features for p in parts), initial=0))
    placed = []
    for part, bias, columns in zip(parts, biases, edges, strict=True):
        tensors = dict(part.tensors)
        if part is not parts[-1] and bias is not None and holds_bits(bias):
            tensors["bias"] = bias
        placed.append(Part(part.scheme, (0, part.out_features), columns, part.act_unsigned, tensors))
    return QuantizedLayer(placed[-1].columns[1], parts[0].out_features, tuple(placed), biases[-1])


def holds_bits(tensor: Tensor) -> bool:
    """Whether any bit is set; unlike a comparison with 0 this sees -0.0, which must come back as it was."""
    return bool(tensor.contiguous().view(torch.uint8).any())


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal dtype, shape and bits: -0.0 is not 0.0."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if not left.numel():
        return True  # whose strides may forbid another view
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def slice_rows(part: Part, start: int, stop: int) -> Part:
    """Some outputs of a part; everything that belongs to its inputs is shared."""
    of_rows = {"qweight": 0, "wscales": 1, "wzeros": 1, "wcscales": 0, "proj_up": 0, "bias": 0, "stored_bias": 0}
    of_rows |= {"wscales": 0} if part.scheme == "int8" else {}
    tensors = {n: t.narrow(of_rows[n], start, stop - start) if n in of_rows else t for n, t in part.tensors.items()}
    rows = part.rows[0] + start, part.rows[0] + stop
    return Part(part.scheme, rows, part.columns, part.act_unsigned, tensors)


def slice_columns(part: Part, start: int, stop: int) -> Part:
    """Some inputs of a part, a multiple of its group size; everything that belongs to its outputs is shared."""
    group = GROUP_SIZE[part.scheme]
    of_columns = {
        "qweight": (1, 2),
        "wscales": (0, group),
        "wzeros": (0, group),
        "smooth_factor": (0, 1),
        "smooth_factor_orig": (0, 1),
        "proj_down": (0, 1),
    }
    if part.scheme == "int8":
        of_columns |= {"qweight": (1, 1), "wscales": (0, 0)}
    tensors = {}
    for name, tensor in part.tensors.items():
        dim, unit = of_columns.get(name, (0, 0))
        tensors[name] = tensor.narrow(dim, start // unit, (stop - start) // unit) if unit else tensor
    columns = part.columns[0] + start, part.columns[0] + stop
    return Part(part.scheme, part.rows, columns, part.act_unsigned, tensors)


def join_rows(parts: Sequence[Part]) -> Part | None:
    """Parts on top of each other as one part; None where one part cannot hold them.

    Their smoothing must be the same, bit for bit. The low-rank branches stand side by side, each acting on its own
    rows; several scales for a whole tensor become one for each channel.
    """
    first, shared = parts[0], ("smooth_factor", "smooth_factor_orig")
    if len(parts) == 1:
        return first
    if first.scheme == "nvfp4":
        parts = [_with_channel_scales(part) for part in parts]
        first = parts[0]
    for part in parts[1:]:
        if part.columns != first.columns or (part.scheme, part.act_unsigned) != (first.scheme, first.act_unsigned):
            return None
        if part.tensors.keys() != first.tensors.keys() or any(
            t.dtype != first[n].dtype for n, t in part.tensors.items()
        ):
            return None
        if any(name in part.tensors and not same_bits(part[name], first[name]) for name in shared):
            return None
    if first.scheme == "awq" or "bias" in first.tensors:
        return None
    wscales = [part["wscales"] for part in parts]
    tensors = {name: first[name] for name in shared if name in first.tensors} | {
        "qweight": torch.cat([part["qweight"] for part in parts]),
        "wscales": torch.cat(wscales) if first.scheme == "int8" else _cat_columns(wscales),
        "proj_down": torch.cat([part["proj_down"] for part in parts], dim=1),
        "proj_up": torch.block_diag(*(part["proj_up"] for part in parts)),
    }
    if "wcscales" in first.tensors:
        tensors["wcscales"] = torch.cat([part["wcscales"] for part in parts])
    return Part(first.scheme, (first.rows[0], parts[-1].rows[1]), first.columns, first.act_unsigned, tensors)


def join_inputs(layer: QuantizedLayer) -> QuantizedLayer:
    """Parts that share input and smoothing as one, so that their input is quantized once: FLUX `linear1`.

    as_in_files takes them apart again, bit for bit.
    """
    first = layer.parts[0]
    if len(layer.parts) == 1 or first.scheme not in ("int4", "int8"):
        return layer  # nvfp4: several scales for a whole tensor would have to be rounded into one for each channel
    joined = join_rows(layer.parts)
    if joined is None or any(part.tensors.keys() != joined.tensors.keys() for part in layer.parts):
        return layer
    pieces = tuple((part.out_features, part.rank) for part in layer.parts)
    return QuantizedLayer(
        layer.in_features, layer.out_features, (replace(joined, pieces=pieces),), layer.bias, input=layer.input
    )


def as_in_files(layer: QuantizedLayer) -> QuantizedLayer:
    """A loaded layer without what was worked out of it, and with its parts as they were read."""
    layer = layer.without_derived()
    layer = replace(layer, parts=tuple(as_rows(part) for part in layer.parts))
    if not any(part.pieces for part in layer.parts):
        return layer
    parts = [piece for part in layer.parts for piece in _take_apart(part)]
    return QuantizedLayer(layer.in_features, layer.out_features, tuple(parts), layer.bias, input=layer.input)


def _take_apart(part: Part) -> list[Part]:
    """The inverse of join_rows."""
    found, top, first = [], 0, 0
    for outputs, rank in part.pieces or ((part.out_features, part.rank),):
        piece, branch = slice_rows(part, top, top + outputs), slice(first, first + rank)
        factors = {"proj_down": part["proj_down"][:, branch], "proj_up": piece["proj_up"][:, branch]}
        tensors = {name: tensor.contiguous() for name, tensor in (piece.tensors | factors).items()}
        found.append(Part(part.scheme, piece.rows, piece.columns, part.act_unsigned, tensors))
        top, first = top + outputs, first + rank
    return found


def _with_channel_scales(part: Part) -> Part:
    """An nvfp4 part whose outer scales are all per channel."""
    tensors = dict(part.tensors)
    whole, channel = tensors.pop("wtscale", None), tensors.get("wcscales")
    if whole is not None:
        one = torch.ones(part.out_features, dtype=whole.dtype) if channel is None else channel
        tensors["wcscales"] = (one.float() * whole.float()).to(one.dtype)
    elif channel is None:
        tensors["wcscales"] = torch.ones(part.out_features, dtype=part["smooth_factor"].dtype)
    return Part(part.scheme, part.rows, part.columns, part.act_unsigned, tensors)


def _cat_columns(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].dtype == torch.float8_e4m3fn:  # as bytes: not every build can move fp8 values
        return torch.cat([t.view(torch.uint8) for t in tensors], dim=1).view(torch.float8_e4m3fn)
    return torch.cat(list(tensors), dim=1)


def slice_layer_rows(layer: QuantizedLayer, start: int, stop: int) -> QuantizedLayer:
    """Some outputs of a whole layer."""
    parts = []
    for part in layer.parts:
        top, bottom = max(start, part.rows[0]), min(stop, part.rows[1])
        if top < bottom:
            piece = slice_rows(part, top - part.rows[0], bottom - part.rows[0])
            rows = top - start, bottom - start
            parts.append(Part(part.scheme, rows, part.columns, part.act_unsigned, piece.tensors))
    bias = None if layer.bias is None else layer.bias[start:stop]
    return QuantizedLayer(layer.in_features, stop - start, tuple(parts), bias)


def cut(layer: QuantizedLayer, rectangles: Sequence[tuple[Span, Span]]) -> list[tuple[Part, Tensor | None]] | None:
    """A layer as one part, with its bias, for each rectangle that a format wants; None where it cannot be had.

    Args:
        rectangles: (rows, columns) that tile the layer, as LinearMap.rectangles gives them.
    """
    found = []
    for rows, columns in rectangles:
        pieces = [piece for part in layer.parts if (piece := _overlap(part, rows, columns)) is not None]
        spans = [piece.rows for piece in pieces]
        if not pieces or [rows[0], *(s[1] for s in spans)] != [*(s[0] for s in spans), rows[1]]:
            return None
        whole = join_rows(pieces)
        if whole is None or whole.columns != columns:
            return None
        own = whole.get("bias")
        tensors = {name: tensor for name, tensor in whole.tensors.items() if name != "bias"}
        part = Part(whole.scheme, whole.rows, whole.columns, whole.act_unsigned, tensors)
        # a layer's bias belongs to the last of the parts that are summed
        bias = None if layer.bias is None else layer.bias[rows[0] : rows[1]]
        found.append((part, bias if columns[1] == layer.in_features and bias is not None else own))
    return found


def _overlap(part: Part, rows: Span, columns: Span) -> Part | None:
    """What of a part lies in a rectangle."""
    top, bottom = max(rows[0], part.rows[0]), min(rows[1], part.rows[1])
    left, right = max(columns[0], part.columns[0]), min(columns[1], part.columns[1])
    if top >= bottom or left >= right:
        return None
    piece = slice_rows(part, top - part.rows[0], bottom - part.rows[0]) if (top, bottom) != part.rows else part
    if (left, right) != part.columns:
        piece = slice_columns(piece, left - part.columns[0], right - part.columns[0])
    return piece
