"""Foreign tile orders against ours, as inverse pairs: permutations only, no arithmetic.

nunchaku stores each tensor in the order in which the threads of its CUDA kernels load it. An order is written once, as
the axes of the stored tensor and the axes of ours; both directions follow from it. The stored 2-D shapes are labels
only: a tensor is flattened before its axes are taken.

Source: the packers of deepcompressor and nunchaku, checked bit for bit against files that they wrote.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .tile_order import TileOrder

# 32-bit words of eight codes each: rows 128T + 16p + 8h + l, words 8t + 4g + q
_QWEIGHT = TileOrder("T t p l q h g", "T p h l, t g q", p=8, l=8, q=4, h=2, g=2)
_VECTOR = TileOrder("T a c b d", "T a b c d", a=8, b=2, c=4, d=2)
_WSCALES_INT4 = TileOrder("T G a c b d", "G, T a b c d", a=8, b=2, c=4, d=2)
_WSCALES_NVFP4 = TileOrder("T t l f s j", "t j, T s f l", l=8, f=4, s=4, j=4)
_PROJ_DOWN = TileOrder("C P l q h g e", "C g q e, P h l", l=8, q=4, h=2, g=2, e=2)
_PROJ_UP = TileOrder("C P l q h g e", "C h l, P g q e", l=8, q=4, h=2, g=2, e=2)


def qweight_from_nunchaku(stored: Tensor, out: Tensor | None = None) -> Tensor:
    """(N, K//2) int8 in fragment order -> (N, K//2) int8 row-major, codes unchanged."""
    rows, half = stored.shape
    target = None if out is None else out.view(torch.int32)
    words = _QWEIGHT.to_natural(stored.contiguous().view(torch.int32), rows, half // 4, out=target)
    return words.view(torch.int8) if out is None else out


def qweight_to_nunchaku(qweight: Tensor) -> Tensor:
    rows, half = qweight.shape
    return _QWEIGHT.to_stored(qweight.contiguous().view(torch.int32), rows, half // 4).view(torch.int8)


def vector_from_nunchaku(stored: Tensor, out: Tensor | None = None) -> Tensor:
    """bias, smooth_factor, wcscales: (N,) -> (N,)."""
    return _VECTOR.to_natural(stored, stored.numel(), out=out)


def vector_to_nunchaku(vector: Tensor) -> Tensor:
    return _VECTOR.to_stored(vector, vector.numel())


def wscales_from_nunchaku(stored: Tensor, out: Tensor | None = None) -> Tensor:
    """(K//group_size, N) label -> (K//group_size, N); int4 for 16-bit dtypes, nvfp4 for e4m3."""
    order = _WSCALES_NVFP4 if stored.dtype == torch.float8_e4m3fn else _WSCALES_INT4
    return order.to_natural(stored, *stored.shape, out=out)


def wscales_to_nunchaku(wscales: Tensor) -> Tensor:
    order = _WSCALES_NVFP4 if wscales.dtype == torch.float8_e4m3fn else _WSCALES_INT4
    return order.to_stored(wscales, *wscales.shape)


def proj_down_from_nunchaku(stored: Tensor, out: Tensor | None = None) -> Tensor:
    """(K, R) label -> (K, R)."""
    return _PROJ_DOWN.to_natural(stored, *stored.shape, out=out)


def proj_down_to_nunchaku(proj_down: Tensor) -> Tensor:
    return _PROJ_DOWN.to_stored(proj_down, *proj_down.shape)


def proj_up_from_nunchaku(stored: Tensor, out: Tensor | None = None) -> Tensor:
    """(N, R) label -> (N, R)."""
    return _PROJ_UP.to_natural(stored, *stored.shape, out=out)


def proj_up_to_nunchaku(proj_up: Tensor) -> Tensor:
    return _PROJ_UP.to_stored(proj_up, *proj_up.shape)


def rows_from_interleaved(stored: Tensor, chunks: int, dim: int = 0, out: Tensor | None = None) -> Tensor:
    """Rows stored as (channel, chunk) -> (chunk, channel), along `dim`; in `out` if given (contiguous)."""
    natural = stored.unflatten(dim, (-1, chunks)).transpose(dim, dim + 1)
    if out is None:
        return natural.flatten(dim, dim + 1)
    out.view(natural.shape).copy_(natural)
    return out


def rows_to_interleaved(natural: Tensor, chunks: int, dim: int = 0) -> Tensor:
    return natural.unflatten(dim, (chunks, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def _scale_chunks(chunks: int) -> range:
    """Which chunks of (shift, scale, gate) or of twice that are scales."""
    return range(1, chunks, 3)


def remove_plus_one(bias: Tensor, chunks: int) -> Tensor:
    """Bias of a modulation layer, rows (chunk, channel), as stored with 1 added to its scales -> float32 without."""
    bias = bias.float().view(chunks, -1).clone()
    bias[list(_scale_chunks(chunks))] -= 1
    return bias.flatten()


def add_plus_one(bias: Tensor, chunks: int, dtype: torch.dtype) -> Tensor:
    """The inverse of remove_plus_one, rounded once to the dtype of the file."""
    bias = bias.float().view(chunks, -1).clone()
    bias[list(_scale_chunks(chunks))] += 1
    return bias.flatten().to(dtype)


def swap_halves(tensor: Tensor) -> Tensor:
    """(scale, shift) rows <-> (shift, scale) rows; its own inverse."""
    return torch.cat(tensor.chunk(2)[::-1])


class _FromStored(Protocol):
    def __call__(self, stored: Tensor, out: Tensor | None = None) -> Tensor: ...


class _ToStored(Protocol):
    def __call__(self, natural: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Conversion:
    """Both directions for one kind of tensor; `out` is where the result goes, contiguous and of its shape."""

    from_stored: _FromStored
    to_stored: _ToStored


def _as_it_is(stored: Tensor, out: Tensor | None = None) -> Tensor:
    return stored if out is None else out.copy_(stored)


_VECTORS = Conversion(vector_from_nunchaku, vector_to_nunchaku)

# tensors of int4 and nvfp4 layers, by their name in kernels/format.py
NUNCHAKU = {
    "qweight": Conversion(qweight_from_nunchaku, qweight_to_nunchaku),
    "wscales": Conversion(wscales_from_nunchaku, wscales_to_nunchaku),
    "wtscale": Conversion(_as_it_is, lambda natural: natural),
    "wcscales": _VECTORS,
    "bias": _VECTORS,
    "smooth_factor": _VECTORS,
    "smooth_factor_orig": _VECTORS,
    "proj_down": Conversion(proj_down_from_nunchaku, proj_down_to_nunchaku),
    "proj_up": Conversion(proj_up_from_nunchaku, proj_up_to_nunchaku),
}


# comfy-kitchen's tiles of 128 rows: the codes of four rows follow each other within a group; the rest is in plain order
KITCHEN_ROWS = 128
_KITCHEN_QWEIGHT = TileOrder("T G q r b", "T q r, G b", q=32, r=4, b=32)
_KITCHEN_WSCALES = TileOrder("T G n", "G, T n", n=KITCHEN_ROWS)
_KITCHEN_PROJ_UP = TileOrder("T R n", "T n, R", n=KITCHEN_ROWS)


def qweight_from_kitchen(stored: Tensor, out: Tensor | None = None) -> Tensor:
    """(N//128, K//64, 32, 128) int8 -> (N, K//2) int8 row-major, codes unchanged."""
    return _KITCHEN_QWEIGHT.to_natural(stored, stored.shape[0] * KITCHEN_ROWS, stored.shape[1] * 32, out=out)


def qweight_to_kitchen(qweight: Tensor) -> Tensor:
    rows, half = qweight.shape
    return _KITCHEN_QWEIGHT.to_stored(qweight, rows // KITCHEN_ROWS, half // 32, 32, 128)


def wscales_from_kitchen(stored: Tensor, out: Tensor | None = None) -> Tensor:
    """(N//128, K//64, 128) -> (K//64, N)."""
    return _KITCHEN_WSCALES.to_natural(stored, stored.shape[1], stored.shape[0] * KITCHEN_ROWS, out=out)


def wscales_to_kitchen(wscales: Tensor) -> Tensor:
    groups, rows = wscales.shape
    return _KITCHEN_WSCALES.to_stored(wscales, rows // KITCHEN_ROWS, groups, KITCHEN_ROWS)


def proj_up_from_kitchen(stored: Tensor, out: Tensor | None = None) -> Tensor:
    """(N//128, R, 128) -> (N, R)."""
    return _KITCHEN_PROJ_UP.to_natural(stored, stored.shape[0] * KITCHEN_ROWS, stored.shape[1], out=out)


def proj_up_to_kitchen(proj_up: Tensor) -> Tensor:
    rows, rank = proj_up.shape
    return _KITCHEN_PROJ_UP.to_stored(proj_up, rows // KITCHEN_ROWS, rank, KITCHEN_ROWS)


# tensors of comfy-kitchen's tile-packed layers that are not in plain order
KITCHEN = {
    "qweight": Conversion(qweight_from_kitchen, qweight_to_kitchen),
    "wscales": Conversion(wscales_from_kitchen, wscales_to_kitchen),
    "proj_up": Conversion(proj_up_from_kitchen, proj_up_to_kitchen),
}
