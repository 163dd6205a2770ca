"""The 4-bit codes of modulation layers: nunchaku's order for one instruction of its kernel against ours.

Four rows make a quad. Within a quad, 64 inputs of one row follow each other, then those of the next row. Of 32 inputs,
a 16-bit word holds k, k+8, k+16 and k+24, lowest first, and eight words follow each other with k. Rows of a layer with
several chunks (shift, scale, gate, ...) are stored as (channel, chunk), wanted as (chunk, channel).

Source: the packers of deepcompressor and nunchaku, checked bit for bit against files that they wrote.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..kernels.packing import unpack_uint4
from .arena import empty
from .layouts import rows_to_interleaved
from .tile_order import TileOrder, positions

BLOCK_BYTES = 384 << 10  # of rows that are worked on together; they stay in the second-level cache
QUAD = 4
# bytes of a row quad: row 4Q + r; k = 64t + 32f + 16b + 8 * (which nibble) + 2v + o
_BYTES = TileOrder("Q t r f v o b", "Q r, t f b v o", r=QUAD, f=2, v=4, o=2, b=2)

# Of a 64-bit integer with the words 0...3, nibble n of every word, and the factor that puts these four nibbles side by
# side into its highest 16 bits: from bit 16w + 4n to bit 48 + 4w. No two products of a nibble fall on the same bits.
_NIBBLES = [np.uint64(0x000F_000F_000F_000F << 4 * n) for n in range(4)]
_FACTORS = [np.uint64(sum(1 << (48 - 12 * w - 4 * n) for w in range(4))) for n in range(4)]


def codes_from_nunchaku(stored: Tensor, chunks: int = 1, out: Tensor | None = None) -> Tensor:
    """(N//4, K//2) int32 -> (N, K//2) int8, codes 0...15, even k in the low nibble; rows as (chunk, channel).

    Args:
        chunks: that the rows are interleaved over; 1 leaves them as stored.
        out: where to put the result, contiguous.
    """
    rows, half = stored.shape[0] * QUAD, stored.shape[1]
    steps = half // 32
    out = empty((rows, half), torch.int8) if out is None else out
    runs = stored.contiguous().view(-1).view(torch.uint8).numpy().view("V32").reshape(rows // QUAD, steps * QUAD)
    target = out.numpy().view(np.uint8).reshape(chunks, rows // chunks, half)
    unit = math.lcm(QUAD, chunks)
    most = max(BLOCK_BYTES // (half * unit), 1) * unit  # rows, whole quads and whole channels
    scratch = np.empty(min(most, rows) * steps, runs.dtype)
    for first in range(0, rows, most):
        count = min(most, rows - first)
        table = positions((count // QUAD, steps, QUAD), (0, 2, 1))
        block = scratch[: count * steps]
        np.take(runs[first // QUAD : (first + count) // QUAD].reshape(-1), table, out=block, mode="wrap")
        channels = slice(first // chunks, (first + count) // chunks)
        target[:, channels] = _in_order(block.view(np.uint64)).view(np.uint8).reshape(-1, chunks, half).swapaxes(0, 1)
    return out


def _in_order(words: np.ndarray) -> np.ndarray:
    """Words of every eighth code -> consecutive codes; 16 bytes (32 inputs) at a time. Flat uint64 -> flat uint64."""
    result, product = np.empty_like(words), np.empty_like(words)
    wanted = result.view(np.uint16).reshape(-1, 4, 2)  # eight inputs, four of them
    found = product.view(np.uint16).reshape(-1, 2, 4)[:, :, 3]
    for nibble in range(4):
        np.bitwise_and(words, _NIBBLES[nibble], out=product)
        np.multiply(product, _FACTORS[nibble], out=product)
        wanted[:, nibble, 0] = found[:, 0]  # one long run each: a third of the time of both at once
        wanted[:, nibble, 1] = found[:, 1]
    return result


def codes_to_nunchaku(qweight: Tensor, chunks: int = 1) -> Tensor:
    """The inverse of codes_from_nunchaku."""
    qweight = rows_to_interleaved(qweight, chunks)
    rows, half = qweight.shape
    codes = unpack_uint4(qweight).view(rows, -1, 2, 8)  # (row, 16-column run, nibble, 2v + o)
    stored = _BYTES.to_stored((codes[:, :, 0] | (codes[:, :, 1] << 4)).view(rows, half), rows // QUAD, half * 4)
    return stored.contiguous().view(torch.int32)
