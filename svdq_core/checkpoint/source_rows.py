"""Some rows of a source layer, where ComfyUI has several Linears for one source, or row halves in the other order.

The rows of all tensors lie in tiles of 128 that follow each other, so whole tiles are taken as they are stored: no bit
changes, and one span of rows is a view.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models import LinearMap
from ..models.layer_maps import Span
from .nunchaku_names import EXACT, SIGNED_BIAS

TILE = 128  # rows and columns of a packed layer are multiples of it
_OF_ROWS = ("qweight", "wscales", "wcscales", "proj_up", "bias")


def own_rows(stored: dict[str, Tensor], linear: LinearMap, where: str) -> dict[str, Tensor]:
    """Of the tensors of a source layer those rows that a Linear consists of; the same tensors where that is all.

    Args:
        stored: canonical tensor name -> tensor, in tiles.

    Raises:
        CheckpointError: the source does not split so.
    """
    qweight = stored["qweight"]
    if linear.piece is None and not linear.swapped:
        return stored
    if qweight.dtype != torch.int8 or qweight.ndim != 2:
        raise CheckpointError(
            f"{where}.qweight is {str(qweight.dtype).removeprefix('torch.')} {tuple(qweight.shape)}, expected int8 of "
            "rows that can be told apart. The file is damaged or of another format."
        )
    rows = qweight.shape[0]
    spans = row_spans(linear, rows, qweight.shape[1] * 2, where)
    if any(edge % TILE for span in spans for edge in span):
        raise CheckpointError(
            f"{where}: {linear.host} would be rows {spans} of {rows}, which do not lie in whole tiles of {TILE}. The "
            "file is damaged or of another model."
        )
    return {name: _take(name, tensor, spans, rows, where) for name, tensor in stored.items()}


def _take_natural(name: str, tensor: Tensor, spans: Sequence[Span], rows: int, where: str) -> Tensor:
    """Rows of what this pack adds beside rounded tensors, which is in plain order."""
    dim = 1 if name == "wscales" else 0
    if tensor.ndim <= dim or tensor.shape[dim] != rows:
        raise CheckpointError(f"{where}: the exact {name} has shape {tuple(tensor.shape)}. The file is damaged.")
    return torch.cat([tensor.narrow(dim, start, stop - start) for start, stop in spans], dim)


def row_spans(linear: LinearMap, rows: int, columns: int, where: str) -> list[Span]:
    """The rows of a source of these sizes that a Linear consists of.

    Raises:
        CheckpointError: such a source does not split so.
    """
    try:
        return linear.source_rows(rows, columns)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}. The file is damaged or of another model.") from error


def plain_rows(weight: Tensor, spans: Sequence[Span]) -> Tensor:
    """Rows of an unquantized tensor."""
    pieces = [weight[start:stop] for start, stop in spans]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _take(name: str, tensor: Tensor, spans: Sequence[Span], rows: int, where: str) -> Tensor:
    """Whole tiles of rows; of what belongs to inputs, everything."""
    exact = "bias" if name == SIGNED_BIAS else name.removeprefix(EXACT)
    if exact != name and exact in _OF_ROWS:
        return _take_natural(exact, tensor, spans, rows, where)
    if name not in _OF_ROWS:
        return tensor
    labels = tensor.shape
    row_dim = 1 if name == "wscales" else 0
    if tensor.ndim <= row_dim or labels[row_dim] != rows:
        raise CheckpointError(
            f"{where}: {name} has shape {tuple(labels)}, expected {rows} rows. The file is damaged or of another model."
        )
    raw = tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor
    tiles = raw.reshape(rows // TILE, -1)
    pieces = [tiles[start // TILE : stop // TILE] for start, stop in spans]
    taken = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    count = sum(stop - start for start, stop in spans)
    shape = (*labels[:row_dim], count, *labels[row_dim + 1 :])
    taken = taken.reshape(shape)
    return taken.view(torch.float8_e4m3fn) if tensor.dtype == torch.float8_e4m3fn else taken
