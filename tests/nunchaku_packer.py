"""Writes layers in nunchaku's tile orders, for tests: the inverse of nunchaku_unpacker.py, and as independent.

Each value goes where the published layout says, computed row by row and column by column.
"""

from dataclasses import dataclass

import numpy as np
import torch
from nunchaku_unpacker import E2M1, GELU_SHIFT
from torch import Tensor

NEWER = {"smooth": "smooth_factor", "smooth_orig": "smooth_factor_orig", "lora_down": "proj_down", "lora_up": "proj_up"}


@dataclass(frozen=True)
class Packed:
    """A layer: the tensors of a file by suffix (older spelling), and the dense weight and bias that they stand for."""

    tensors: dict[str, Tensor]
    weight: np.ndarray
    bias: np.ndarray | None

    def named(self, layer: str, newer: bool) -> dict[str, Tensor]:
        return {f"{layer}.{NEWER.get(n, n) if newer else n}": t for n, t in self.tensors.items()}


class Packer:
    """Random layers of one precision.

    Args:
        precision: "int4" or "nvfp4". rank: of the low-rank branches.
    """

    def __init__(self, precision: str, rank: int = 16, seed: int = 0):
        self.nvfp4, self.rank, self.draw = precision == "nvfp4", rank, np.random.default_rng(seed)

    def shared(self, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Smoothing and down projection, for layers that read one tensor."""
        smooth = _bf16(self.draw.uniform(0.5, 2, columns))
        return smooth, _bf16(self.draw.normal(0, 0.05, (self.rank, columns)))

    def layer(self, rows: int, columns: int, bias: bool = True, unsigned: bool = False, shared=None) -> Packed:
        """A W4A4 layer."""
        smooth, down = shared or self.shared(columns)
        up = _bf16(self.draw.normal(0, 0.1, (rows, self.rank)))
        tensors, values = self._codes(rows, columns)
        residual = values / smooth
        true_bias = _bf16(self.draw.normal(0, 0.1, rows)) if bias else None
        if true_bias is not None:
            shift = GELU_SHIFT * residual.sum(axis=1) if unsigned and not self.nvfp4 else 0.0
            stored = _bf16(true_bias - shift)
            true_bias = stored + shift
            tensors["bias"] = _place(stored, _vector_place(rows))
        tensors["smooth"] = _place(smooth, _vector_place(columns))
        tensors["smooth_orig"] = tensors["smooth"].clone()
        tensors["lora_down"] = _place(down, _down_place(self.rank, columns)).view(columns, self.rank)
        tensors["lora_up"] = _place(up, _up_place(rows, self.rank)).view(rows, self.rank)
        return Packed(tensors, residual + up @ down, true_bias)

    def modulation(self, rows: int, columns: int, chunks: int, bias: bool = True) -> Packed:
        """An AWQ layer, rows interleaved over its chunks, 1 added to the biases of the scales."""
        groups = columns // 64
        codes = self.draw.integers(0, 16, (rows, columns))
        scales, zeros = _bf16(self.draw.uniform(0.01, 0.02, (rows, groups))), self.draw.normal(0, 0.05, (rows, groups))
        zeros = _bf16(zeros)
        weight = codes * scales.repeat(64, axis=1) + zeros.repeat(64, axis=1)
        true_bias = _bf16(self.draw.normal(0, 0.1, rows)) if bias else None
        order = np.arange(rows).reshape(chunks, -1).T.reshape(-1)  # stored row -> row
        padding = np.zeros((-groups % 16, rows))
        tensors = {
            "qweight": _awq_words(codes[order]),
            "wscales": _tensor(np.concatenate([scales[order].T, padding])),
            "wzeros": _tensor(np.concatenate([zeros[order].T, padding])),
        }
        if true_bias is not None:
            plus = np.zeros((chunks, rows // chunks))
            plus[1::3] = 1 if chunks > 1 else 0
            stored = _bf16(true_bias + plus.reshape(-1))
            true_bias = stored - plus.reshape(-1)
            tensors["bias"] = _tensor(stored[order])
        return Packed(tensors, weight, true_bias)

    def _codes(self, rows: int, columns: int) -> tuple[dict[str, Tensor], np.ndarray]:
        codes = self.draw.integers(0, 16, (rows, columns))
        qweight = np.zeros(rows * columns, dtype=np.uint8)
        qweight[_code_place(rows, columns)] = codes
        packed = torch.from_numpy(qweight[0::2] | qweight[1::2] << 4).view(torch.int8).view(rows, columns // 2)
        if not self.nvfp4:
            scales = _bf16(self.draw.uniform(0.002, 0.01, (rows, columns // 64)))
            wscales = _place(scales, _int4_scale_place(rows, columns)).view(columns // 64, rows)
            values = np.where(codes > 7, codes - 16.0, codes) * scales.repeat(64, axis=1)
            return {"qweight": packed, "wscales": wscales}, values
        raw = torch.from_numpy(self.draw.uniform(0.5, 4, (rows, columns // 16))).to(torch.float8_e4m3fn)
        flat = torch.zeros(raw.numel(), dtype=torch.uint8)
        flat[torch.from_numpy(_nvfp4_scale_place(rows, columns))] = raw.view(torch.uint8)
        whole = float(_bf16(np.array([0.004]))[0])
        values = E2M1[codes] * raw.double().numpy().repeat(16, axis=1) * whole
        wscales = flat.view(torch.float8_e4m3fn).view(columns // 16, rows)
        return {"qweight": packed, "wscales": wscales, "wtscale": _tensor(np.array([whole]))}, values


def _bf16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(torch.bfloat16).double().numpy()


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)


def _place(values: np.ndarray, place: np.ndarray) -> Tensor:
    flat = np.zeros(values.size)
    flat[place] = values
    return _tensor(flat)


def _nested(place: np.ndarray, *steps: tuple[np.ndarray, int]) -> np.ndarray:
    for index, size in steps:
        place = place * size + index
    return place


def _grid(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(rows)[:, None], np.arange(columns)[None, :]


def _code_place(rows: int, columns: int) -> np.ndarray:
    n, k = _grid(rows, columns)
    first = n // 128 * (columns // 64) + k // 64
    steps = (n % 128 // 16, 8), (n % 8, 8), (k % 32 // 8, 4), (n % 16 // 8, 2), (k % 64 // 32, 2), (k % 8, 8)
    return _nested(first, *steps)


def _vector_place(size: int) -> np.ndarray:
    i = np.arange(size)
    return _nested(i // 128, (i % 128 // 16, 8), (i % 8 // 2, 4), (i % 16 // 8, 2), (i % 2, 2))


def _int4_scale_place(rows: int, columns: int) -> np.ndarray:
    n, g = _grid(rows, columns // 64)
    first = n // 128 * (columns // 64) + g
    return _nested(first, (n % 128 // 16, 8), (n % 8 // 2, 4), (n % 16 // 8, 2), (n % 2, 2))


def _nvfp4_scale_place(rows: int, columns: int) -> np.ndarray:
    n, g = _grid(rows, columns // 16)
    first = n // 128 * (columns // 64) + g // 4
    return _nested(first, (n % 8, 8), (n % 32 // 8, 4), (n % 128 // 32, 4), (g % 4, 4))


def _down_place(rank: int, columns: int) -> np.ndarray:
    r, k = _grid(rank, columns)
    first = k // 16 * (rank // 16) + r // 16
    return _nested(first, (r % 8, 8), (k % 8 // 2, 4), (r % 16 // 8, 2), (k % 16 // 8, 2), (k % 2, 2))


def _up_place(rows: int, rank: int) -> np.ndarray:
    n, r = _grid(rows, rank)
    first = n // 16 * (rank // 16) + r // 16
    return _nested(first, (n % 8, 8), (r % 8 // 2, 4), (n % 16 // 8, 2), (r % 16 // 8, 2), (r % 2, 2))


def _awq_words(codes: np.ndarray) -> Tensor:
    """int32 (N/4, K/2): word w of 64 columns of four rows holds columns w, w + 8, w + 16, w + 24 of a half."""
    rows, columns = codes.shape
    words = np.zeros((rows // 4, columns), dtype=np.uint16)
    n, k = _grid(rows, columns)
    place = k // 64 * 64 + n % 4 * 16 + k % 64 // 32 * 8 + k % 8
    np.bitwise_or.at(
        words, (np.broadcast_to(n // 4, place.shape), place), (codes << (k % 32 // 8 * 4)).astype(np.uint16)
    )
    return torch.from_numpy(words.view(np.int32).reshape(rows // 4, columns // 2))


def natural_order(name: str, stored: Tensor) -> Tensor:
    """A tensor of an nvfp4 layer out of its tiles, by its newer name: the same shape, in plain order."""
    if name == "qweight":
        rows, columns = stored.shape[0], 2 * stored.shape[1]
        raw = stored.reshape(-1).view(torch.uint8)
        flat = torch.stack([raw & 15, raw >> 4], dim=1).reshape(-1)
        codes = flat[torch.from_numpy(_code_place(rows, columns))]
        return (codes[:, 0::2] | codes[:, 1::2] << 4).view(torch.int8)
    if name == "wscales":
        groups, rows = stored.shape
        place = torch.from_numpy(_nvfp4_scale_place(rows, 16 * groups))
        return stored.reshape(-1).view(torch.uint8)[place].T.contiguous().view(stored.dtype)
    if name == "proj_down":
        columns, rank = stored.shape
        return stored.reshape(-1)[torch.from_numpy(_down_place(rank, columns))].T.contiguous()
    if name == "proj_up":
        return stored.reshape(-1)[torch.from_numpy(_up_place(*stored.shape))]
    return stored[torch.from_numpy(_vector_place(stored.numel()))]
