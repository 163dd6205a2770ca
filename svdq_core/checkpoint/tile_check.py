"""Whether codes lie in nunchaku's tiles, where names and shapes are those of tensors in plain order, too.

A scale is made of the largest weight of its group, so that nearly every group has a code of the largest size. Read in
the wrong order a group is a mixture of many, and a third of them has none. A file is refused only where its codes fit
plain order and do not fit tiles.
"""

import torch
from torch import Tensor

from .. import layouts
from ..errors import CheckpointError
from .container import Checkpoint
from .source_rows import TILE

GROUP = {"F8_E4M3": 16}  # inputs that share a scale, by the dtype of the scales; 64 in INT4
MOST_ROWS = 256  # that are looked at, in whole tiles: thousands of groups, and no time
FITS, BETTER = 0.95, 0.1  # share of groups with a code of the largest size; how much less of them in tiles


def check_tiles(checkpoint: Checkpoint) -> None:
    """Look at the smallest quantized layer.

    Raises:
        CheckpointError: its codes are in plain order.
    """
    names = [name.removesuffix(".qweight") for name in checkpoint if name.endswith(".qweight")]
    unsigned = next((name for name in names if checkpoint.dtype(f"{name}.qweight") == "U8"), None)
    if unsigned is not None:
        raise CheckpointError(
            f"{checkpoint.name}: {unsigned}.qweight is uint8, as vLLM-Omni stores it, and neither metadata nor a "
            "config.json beside it say so. Take the whole folder that its converter wrote."
        )
    found = [n for n in names if _may_be_read(checkpoint, n)]
    if not found:
        return
    name = min(found, key=lambda n: torch.Size(checkpoint.shape(f"{n}.qweight")).numel())
    group = GROUP.get(checkpoint.dtype(f"{name}.wscales"), 64)
    stored = _first_rows(checkpoint, f"{name}.qweight")
    plain, tiles = (_full_groups(t, group) for t in (stored, layouts.NUNCHAKU["qweight"].from_stored(stored)))
    if plain > FITS and plain - tiles > BETTER:
        raise CheckpointError(
            f"{checkpoint.name}: {name}.qweight is not in nunchaku's tiles but in plain order: {plain:.0%} of its "
            f"groups reach their scale so, and {tiles:.0%} in tiles. Nothing in the file says which tool wrote it, and "
            "read as nunchaku's it would be noise. Take it with the config that the tool wrote beside it, or another "
            "file."
        )


def _first_rows(checkpoint: Checkpoint, qweight: str) -> Tensor:
    rows, half = checkpoint.shape(qweight)
    few = min(rows, MOST_ROWS)
    checkpoint.staging.restart()
    return checkpoint.read_staged(qweight, [(0, few // TILE)], rows // TILE).reshape(few, half)


def _may_be_read(checkpoint: Checkpoint, name: str) -> bool:
    scales, shape = f"{name}.wscales", checkpoint.shape(f"{name}.qweight")
    return (
        checkpoint.dtype(f"{name}.qweight") == "I8"
        and scales in checkpoint
        and f"{name}.wzeros" not in checkpoint
        and len(shape) == 2
        and shape[0] > 0
        and shape[0] % TILE == shape[1] % (TILE // 2) == 0 < shape[1]
    )


def _full_groups(packed: Tensor, group: int) -> float:
    """Share of the groups that have a code of the largest size: -8, -7 and 7 of int4, 6 of E2M1."""
    raw = packed.contiguous().view(torch.uint8)
    low, high = raw & 15, raw >> 4
    largest = (7,) if group == 16 else (7, 8, 9)
    if group == 16:
        low, high = low & 7, high & 7
    full = torch.zeros_like(raw, dtype=torch.bool)
    for code in largest:
        full |= (low == code) | (high == code)
    return float(full.view(raw.shape[0], -1, group // 2).any(dim=-1).float().mean())
