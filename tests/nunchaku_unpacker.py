"""A second reader of nunchaku's single file, for tests: index arithmetic straight from the published layout.

It shares nothing with the pack: no tile orders, no tables, no tensors of its classes. Each function computes, for every
row n and column k, where in the stored bytes the value lies. Source: deepcompressor's packer and nunchaku's kernels.
"""

import numpy as np
import torch
from torch import Tensor

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float64)
GELU_SHIFT = 0.171875


def dense_layer(tensors: dict[str, Tensor], layer: str, unsigned: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weight (N, K) and bias (N,) that a W4A4 layer of a file stands for.

    Args:
        tensors: of the file, older spelling. layer: its name there.
        unsigned: it sits behind a GELU; INT4 files have the shift of its inputs in its bias.
    """
    qweight = tensors[f"{layer}.qweight"]
    rows, columns = qweight.shape[0], qweight.shape[1] * 2
    nvfp4 = tensors[f"{layer}.wscales"].dtype == torch.float8_e4m3fn
    codes = _codes(qweight.numpy().view(np.uint8).reshape(-1), rows, columns)
    if nvfp4:
        values = E2M1[codes] * _nvfp4_scales(tensors[f"{layer}.wscales"], rows, columns)
        values *= float(tensors[f"{layer}.wtscale"]) if f"{layer}.wtscale" in tensors else 1.0
        if f"{layer}.wcscales" in tensors:
            values *= _vector(tensors[f"{layer}.wcscales"])[:, None]
    else:
        values = np.where(codes > 7, codes - 16.0, codes) * _int4_scales(tensors[f"{layer}.wscales"], rows, columns)
    residual = values / _vector(tensors[f"{layer}.smooth"])
    bias = _vector(tensors[f"{layer}.bias"])
    if unsigned and not nvfp4:
        bias = bias + GELU_SHIFT * residual.sum(axis=1)
    down, up = tensors[f"{layer}.lora_down"], tensors[f"{layer}.lora_up"]
    return residual + _up(up, rows) @ _down(down, columns), bias


def _grid(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(rows)[:, None], np.arange(columns)[None, :]


def _codes(stored: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Codes: tiles of 128 x 64, in them (row / 16, row % 8, column / 8 % 4, row / 8 % 2, column / 32, column % 8)."""
    n, k = _grid(rows, columns)
    place = n // 128 * (columns // 64) + k // 64
    for index, size in (
        (n % 128 // 16, 8),
        (n % 8, 8),
        (k % 32 // 8, 4),
        (n % 16 // 8, 2),
        (k % 64 // 32, 2),
        (k % 8, 8),
    ):
        place = place * size + index
    return stored[place // 2] >> (4 * (place % 2)) & 15


def _vector(stored: Tensor) -> np.ndarray:
    """Tiles of 128, in them (i / 16, i / 2 % 4, i / 8 % 2, i % 2)."""
    i = np.arange(stored.numel())
    place = i // 128
    for index, size in ((i % 128 // 16, 8), (i % 8 // 2, 4), (i % 16 // 8, 2), (i % 2, 2)):
        place = place * size + index
    return _numbers(stored)[place]


def _int4_scales(stored: Tensor, rows: int, columns: int) -> np.ndarray:
    """One for each row and 64 columns: tiles of 128 rows, then column groups, then the order of vectors."""
    n, k = _grid(rows, columns)
    place = n // 128 * (columns // 64) + k // 64
    for index, size in ((n % 128 // 16, 8), (n % 8 // 2, 4), (n % 16 // 8, 2), (n % 2, 2)):
        place = place * size + index
    return _numbers(stored)[place]


def _nvfp4_scales(stored: Tensor, rows: int, columns: int) -> np.ndarray:
    """One for each row and 16 columns: rows 128T + 32s + 8f + l, column groups 4t + j, stored (T, t, l, f, s, j)."""
    n, k = _grid(rows, columns)
    group = k // 16
    place = n // 128 * (columns // 64) + group // 4
    for index, size in ((n % 8, 8), (n % 32 // 8, 4), (n % 128 // 32, 4), (group % 4, 4)):
        place = place * size + index
    return _numbers(stored)[place]


def _down(stored: Tensor, columns: int) -> np.ndarray:
    """(R, K): columns 16C + 8g + 2q + e, ranks 16P + 8h + l, stored (C, P, l, q, h, g, e)."""
    rank = stored.numel() // columns
    r, k = _grid(rank, columns)
    place = k // 16 * (rank // 16) + r // 16
    for index, size in ((r % 8, 8), (k % 8 // 2, 4), (r % 16 // 8, 2), (k % 16 // 8, 2), (k % 2, 2)):
        place = place * size + index
    return _numbers(stored)[place]


def _up(stored: Tensor, rows: int) -> np.ndarray:
    """(N, R): rows 16C + 8h + l, ranks 16P + 8g + 2q + e, stored (C, P, l, q, h, g, e)."""
    rank = stored.numel() // rows
    n, r = _grid(rows, rank)
    place = n // 16 * (rank // 16) + r // 16
    for index, size in ((n % 8, 8), (r % 8 // 2, 4), (n % 16 // 8, 2), (r % 16 // 8, 2), (r % 2, 2)):
        place = place * size + index
    return _numbers(stored)[place]


def _numbers(stored: Tensor) -> np.ndarray:
    return stored.reshape(-1).to(torch.float64).numpy()
