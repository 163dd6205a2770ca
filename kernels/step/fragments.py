"""The order in which INT4 tensor cores read their operands, and the way there from row-major codes.

The instruction is mma m16n8k64. In 32-bit words of eight codes along k, with lane = 4 * g + t (g 0...7, t 0...3):

    activations  [K/64][M/16][lane][4]  word r: row 16 * tile + g + 8 * (r & 1), k = 64 * group + 32 * (r >> 1) + 8 * t
    weights      [K/64][N/16][lane][4]  word r: row 16 * tile + 8 * (r >> 1) + g, k = 64 * group + 32 * (r & 1) + 8 * t

So 16 rows and one scale group are 512 consecutive bytes, which a warp copies and loads 16 bytes a lane.
Source: the fragment tables of the PTX ISA, "Matrix Fragments for mma.m16n8k64".
"""

import torch
from torch import Tensor


def _words(codes: Tensor) -> Tensor:
    """(A, K//2) int8 -> (A/16 tile, row half, g, K/64, k half, t) int32."""
    rows, half = codes.shape
    return codes.view(torch.int32).view(rows // 16, 2, 8, half // 32, 2, 4)


def _in_order(words: Tensor, groups: int, tiles: int) -> Tensor:
    """(K/64 * M/16 * 128 words in six dimensions) -> (groups, tiles, 32, 4), copied by what recording.py can note."""
    out = torch.empty(words.shape, dtype=words.dtype, device=words.device)
    return out.copy_(words).view(groups, tiles, 32, 4)


def to_activation_fragments(qx: Tensor) -> Tensor:
    """(M, K//2) int8 row-major, M a multiple of 16 -> (K//64, M//16, 32, 4) int32."""
    rows, half = qx.shape
    return _in_order(_words(qx).permute(3, 0, 2, 5, 4, 1), half // 32, rows // 16)


def to_weight_fragments(qweight: Tensor) -> Tensor:
    """(N, K//2) int8 row-major, N a multiple of 16 -> (K//64, N//16, 32, 4) int32."""
    rows, half = qweight.shape
    return _in_order(_words(qweight).permute(3, 0, 2, 5, 1, 4), half // 32, rows // 16)


def are_fragments(qweight: Tensor) -> bool:
    """Whether codes of a weight are in this order, and not in rows."""
    return qweight.ndim == 4


def from_weight_fragments(fragments: Tensor) -> Tensor:
    """(K//64, N//16, 32, 4) int32 -> (N, K//2) int8 row-major: the inverse of to_weight_fragments."""
    groups, tiles, _, _ = fragments.shape
    words = fragments.view(groups, tiles, 8, 4, 2, 2).permute(1, 4, 2, 0, 5, 3)
    return words.reshape(tiles * 16, groups * 8).view(torch.int8)
