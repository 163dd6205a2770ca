"""Some rows of a source layer, where ComfyUI has several Linears for one source, or row halves in the other order.

The rows of all tensors lie in tiles of 128 that follow each other, so whole tiles are read as they are stored: no bit
changes, and what belongs to other Linears is not read at all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models import LinearMap
from ..models.layer_maps import Span
from .container import Checkpoint
from .nunchaku_names import EXACT, SIGNED_BIAS
from .safetensors_file import DTYPES

TILE = 128  # rows and columns of a packed layer are multiples of it
_OF_ROWS = ("qweight", "wscales", "wcscales", "proj_up", "bias")
_MOVED = ("qweight", "wscales", "wzeros", "proj_down", "proj_up")  # readers put them into another order, in a copy


def read_rows(checkpoint: Checkpoint, stored: dict[str, str], linear: LinearMap, where: str) -> dict[str, Tensor]:
    """The tensors of a source layer, and of those only the rows that a Linear consists of.

    Args:
        stored: canonical tensor name -> full name in the file, of tensors in tiles.

    Returns:
        Canonical tensor name -> tensor, the large ones in the staging memory of the checkpoint.

    Raises:
        CheckpointError: the source does not split so, or its tensors cannot be read.
    """
    if linear.piece is None and not linear.swapped:
        return {
            name: checkpoint.read_staged(full) if name in _MOVED else checkpoint[full] for name, full in stored.items()
        }
    dtype, shape = checkpoint.dtype(stored["qweight"]), checkpoint.shape(stored["qweight"])
    if dtype != "I8" or len(shape) != 2:
        found = str(DTYPES.get(dtype, dtype)).removeprefix("torch.")
        raise CheckpointError(
            f"{where}.qweight is {found} {shape}, expected int8 of rows that can be told apart. The file is damaged or "
            "of another format."
        )
    rows = shape[0]
    spans = row_spans(linear, rows, shape[1] * 2, where)
    if any(edge % TILE for span in spans for edge in span):
        raise CheckpointError(
            f"{where}: {linear.host} would be rows {spans} of {rows}, which do not lie in whole tiles of {TILE}. The "
            "file is damaged or of another model."
        )
    return {name: _read(checkpoint, name, full, spans, rows=rows, where=where) for name, full in stored.items()}


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


def _read(checkpoint: Checkpoint, name: str, full: str, spans: Sequence[Span], *, rows: int, where: str) -> Tensor:
    """Whole tiles of rows; of what belongs to inputs, everything."""
    exact = "bias" if name == SIGNED_BIAS else name.removeprefix(EXACT)
    if exact != name and exact in _OF_ROWS:
        return _take_natural(exact, checkpoint[full], spans, rows, where)
    if name not in _OF_ROWS:
        return checkpoint.read_staged(full) if name in _MOVED else checkpoint[full]
    labels = checkpoint.shape(full)
    row_dim = 1 if name == "wscales" else 0
    if len(labels) <= row_dim or labels[row_dim] != rows:
        raise CheckpointError(
            f"{where}: {name} has shape {tuple(labels)}, expected {rows} rows. The file is damaged or of another model."
        )
    taken = checkpoint.read_staged(full, [(start // TILE, stop // TILE) for start, stop in spans], rows // TILE)
    count = sum(stop - start for start, stop in spans)
    taken = taken.reshape(*labels[:row_dim], count, *labels[row_dim + 1 :])
    return taken if name in _MOVED else taken.clone()


def _take_natural(name: str, tensor: Tensor, spans: Sequence[Span], rows: int, where: str) -> Tensor:
    """Rows of what this pack adds beside rounded tensors, which is in plain order."""
    dim = 1 if name == "wscales" else 0
    if tensor.ndim <= dim or tensor.shape[dim] != rows:
        raise CheckpointError(f"{where}: the exact {name} has shape {tuple(tensor.shape)}. The file is damaged.")
    return torch.cat([tensor.narrow(dim, start, stop - start) for start, stop in spans], dim)
