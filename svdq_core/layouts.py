"""Foreign tile orders against ours, as inverse pairs: permutations only, no arithmetic.

nunchaku stores each tensor in the order in which the threads of its CUDA kernels load it. An order is written once, as
the axes of the stored tensor and the axes of ours; both directions follow from it. The stored 2-D shapes are labels
only: a tensor is flattened before its axes are taken.

Source: the packers of deepcompressor and nunchaku, checked bit for bit against files that they wrote.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.packing import unpack_uint4


class TileOrder:
    """One permutation between a stored tensor and a natural one.

    Args:
        stored: axis letters of the flat stored tensor, slowest first; capitals have open sizes.
        natural: the same letters, one group for each dimension of the natural tensor, groups separated by commas.
        sizes: fixed sizes of the small letters. Each natural dimension has exactly one open letter.
    """

    def __init__(self, stored: str, natural: str, **sizes: int):
        self.stored, self.natural = stored.split(), [group.split() for group in natural.split(",")]
        self.sizes = sizes
        self.flat_natural = [axis for group in self.natural for axis in group]

    def _all_sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        sizes = dict(self.sizes)
        for group, total in zip(self.natural, shape, strict=True):
            (free,) = (axis for axis in group if axis not in self.sizes)
            sizes[free] = total // math.prod(self.sizes[axis] for axis in group if axis != free)
        return sizes

    def to_natural(self, stored: Tensor, *shape: int) -> Tensor:
        """Stored tensor of any shape -> natural tensor of the given shape."""
        sizes = self._all_sizes(shape)
        view = stored.reshape([sizes[axis] for axis in self.stored])
        return view.permute([self.stored.index(axis) for axis in self.flat_natural]).reshape(shape)

    def to_stored(self, natural: Tensor, *shape: int) -> Tensor:
        """Natural tensor -> stored tensor under the label of the given shape."""
        sizes = self._all_sizes(tuple(natural.shape))
        view = natural.reshape([sizes[axis] for axis in self.flat_natural])
        return view.permute([self.flat_natural.index(axis) for axis in self.stored]).reshape(shape)


# 32-bit words of eight codes each: rows 128T + 16p + 8h + l, words 8t + 4g + q
_QWEIGHT = TileOrder("T t p l q h g", "T p h l, t g q", p=8, l=8, q=4, h=2, g=2)
_VECTOR = TileOrder("T a c b d", "T a b c d", a=8, b=2, c=4, d=2)
_WSCALES_INT4 = TileOrder("T G a c b d", "G, T a b c d", a=8, b=2, c=4, d=2)
_WSCALES_NVFP4 = TileOrder("T t l f s j", "t j, T s f l", l=8, f=4, s=4, j=4)
_PROJ_DOWN = TileOrder("C P l q h g e", "C g q e, P h l", l=8, q=4, h=2, g=2, e=2)
_PROJ_UP = TileOrder("C P l q h g e", "C h l, P g q e", l=8, q=4, h=2, g=2, e=2)
# bytes of a row quad: row 4Q + r; k = 64t + 32f + 16b + 8 * (which nibble) + 2v + o
_AWQ_BYTES = TileOrder("Q t r f v o b", "Q r, t f b v o", r=4, f=2, v=4, o=2, b=2)


def qweight_from_nunchaku(stored: Tensor) -> Tensor:
    """(N, K//2) int8 in fragment order -> (N, K//2) int8 row-major, codes unchanged."""
    rows, half = stored.shape
    words = _QWEIGHT.to_natural(stored.contiguous().view(torch.int32), rows, half // 4)
    return words.contiguous().view(torch.int8).view(rows, half)


def qweight_to_nunchaku(qweight: Tensor) -> Tensor:
    rows, half = qweight.shape
    words = _QWEIGHT.to_stored(qweight.contiguous().view(torch.int32), rows, half // 4)
    return words.contiguous().view(torch.int8).view(rows, half)


def vector_from_nunchaku(stored: Tensor) -> Tensor:
    """bias, smooth_factor, wcscales: (N,) -> (N,)."""
    return _VECTOR.to_natural(stored, stored.numel())


def vector_to_nunchaku(vector: Tensor) -> Tensor:
    return _VECTOR.to_stored(vector, vector.numel())


def wscales_from_nunchaku(stored: Tensor) -> Tensor:
    """(K//group_size, N) label -> (K//group_size, N); int4 for 16-bit dtypes, nvfp4 for e4m3."""
    if stored.dtype == torch.float8_e4m3fn:  # permuted as bytes: not every build can move fp8 values
        return _WSCALES_NVFP4.to_natural(stored.view(torch.uint8), *stored.shape).contiguous().view(stored.dtype)
    return _WSCALES_INT4.to_natural(stored, *stored.shape)


def wscales_to_nunchaku(wscales: Tensor) -> Tensor:
    if wscales.dtype == torch.float8_e4m3fn:
        stored = _WSCALES_NVFP4.to_stored(wscales.view(torch.uint8), *wscales.shape)
        return stored.contiguous().view(wscales.dtype)
    return _WSCALES_INT4.to_stored(wscales, *wscales.shape)


def proj_down_from_nunchaku(stored: Tensor) -> Tensor:
    """(K, R) label -> (K, R)."""
    return _PROJ_DOWN.to_natural(stored, *stored.shape)


def proj_down_to_nunchaku(proj_down: Tensor) -> Tensor:
    return _PROJ_DOWN.to_stored(proj_down, *proj_down.shape)


def proj_up_from_nunchaku(stored: Tensor) -> Tensor:
    """(N, R) label -> (N, R)."""
    return _PROJ_UP.to_natural(stored, *stored.shape)


def proj_up_to_nunchaku(proj_up: Tensor) -> Tensor:
    return _PROJ_UP.to_stored(proj_up, *proj_up.shape)


def awq_qweight_from_nunchaku(stored: Tensor) -> Tensor:
    """(N//4, K//2) int32 -> (N, K//2) int8, codes 0...15, even k in the low nibble; rows as stored."""
    rows, columns = stored.shape[0] * 4, stored.shape[1] * 2
    # A 16-bit word holds k, k+8, k+16, k+24: every byte b holds the codes of k + 16b (low) and k + 16b + 8 (high).
    natural = _AWQ_BYTES.to_natural(stored.contiguous().view(torch.uint8), rows, columns // 2)
    pairs = natural.view(rows, -1, 4, 2)  # (row, 16-column run, v, even or odd k)
    even, odd = pairs[..., 0], pairs[..., 1]
    low, high = (even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)
    return torch.cat((low, high), dim=-1).view(rows, columns // 2).view(torch.int8)


def awq_qweight_to_nunchaku(qweight: Tensor) -> Tensor:
    rows, half = qweight.shape
    codes = unpack_uint4(qweight).view(rows, -1, 2, 8)  # (row, 16-column run, nibble, 2v + o)
    stored = _AWQ_BYTES.to_stored((codes[:, :, 0] | (codes[:, :, 1] << 4)).view(rows, half), rows // 4, half * 4)
    return stored.contiguous().view(torch.int32)


def rows_from_interleaved(stored: Tensor, chunks: int, dim: int = 0) -> Tensor:
    """Rows stored as (channel, chunk) -> (chunk, channel), along `dim`."""
    return stored.unflatten(dim, (-1, chunks)).transpose(dim, dim + 1).flatten(dim, dim + 1)


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


@dataclass(frozen=True)
class Conversion:
    """Both directions for one kind of tensor."""

    from_stored: Callable[[Tensor], Tensor]
    to_stored: Callable[[Tensor], Tensor]


_VECTORS = Conversion(vector_from_nunchaku, vector_to_nunchaku)

# tensors of int4 and nvfp4 layers, by their name in kernels/format.py
NUNCHAKU = {
    "qweight": Conversion(qweight_from_nunchaku, qweight_to_nunchaku),
    "wscales": Conversion(wscales_from_nunchaku, wscales_to_nunchaku),
    "wtscale": Conversion(lambda stored: stored, lambda natural: natural),
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


def qweight_from_kitchen(stored: Tensor) -> Tensor:
    """(N//128, K//64, 32, 128) int8 -> (N, K//2) int8 row-major, codes unchanged."""
    return _KITCHEN_QWEIGHT.to_natural(stored, stored.shape[0] * KITCHEN_ROWS, stored.shape[1] * 32)


def qweight_to_kitchen(qweight: Tensor) -> Tensor:
    rows, half = qweight.shape
    return _KITCHEN_QWEIGHT.to_stored(qweight, rows // KITCHEN_ROWS, half // 32, 32, 128)


def wscales_from_kitchen(stored: Tensor) -> Tensor:
    """(N//128, K//64, 128) -> (K//64, N)."""
    return _KITCHEN_WSCALES.to_natural(stored, stored.shape[1], stored.shape[0] * KITCHEN_ROWS)


def wscales_to_kitchen(wscales: Tensor) -> Tensor:
    groups, rows = wscales.shape
    return _KITCHEN_WSCALES.to_stored(wscales, rows // KITCHEN_ROWS, groups, KITCHEN_ROWS)


def proj_up_from_kitchen(stored: Tensor) -> Tensor:
    """(N//128, R, 128) -> (N, R)."""
    return _KITCHEN_PROJ_UP.to_natural(stored, stored.shape[0] * KITCHEN_ROWS, stored.shape[1])


def proj_up_to_kitchen(proj_up: Tensor) -> Tensor:
    rows, rank = proj_up.shape
    return _KITCHEN_PROJ_UP.to_stored(proj_up, rows // KITCHEN_ROWS, rank, KITCHEN_ROWS)


# tensors of comfy-kitchen's tile-packed layers that are not in plain order
KITCHEN = {
    "qweight": Conversion(qweight_from_kitchen, qweight_to_kitchen),
    "wscales": Conversion(wscales_from_kitchen, wscales_to_kitchen),
    "proj_up": Conversion(proj_up_from_kitchen, proj_up_to_kitchen),
}
