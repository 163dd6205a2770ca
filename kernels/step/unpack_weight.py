"""Bring 4-bit weights into a form that tensor cores read, in scratch memory that lives for one layer.

    expand_codes        int8 codes as stored, one a byte, for gemm_w4a4
    dequantize_weight   16-bit values followed by proj_up in the same row: with x_down behind the activations, one
                        matrix product computes the layer and its low-rank branch

Reference: reference.dequantize_int4 and its like. Layouts: format.py. For w4a8 see requantize_weight.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import GROUP_SIZE_AWQ, GROUP_SIZE_INT4, GROUP_SIZE_NVFP4
from ..launching.launch import launch
from ..numerics import decode_e4m3, nibbles_to_float, round_to_bits
from ..tiles import unpack_tile

GROUP_SIZE = {"int4": GROUP_SIZE_INT4, "nvfp4": GROUP_SIZE_NVFP4, "awq": GROUP_SIZE_AWQ}


@triton.jit
def channel_factors(wtscale_ptr, wcscales_ptr, offs_n, N):
    """What multiplies each output channel of an nvfp4 weight, float32; either pointer may be None."""
    factors = tl.full(offs_n.shape, 1.0, tl.float32)
    if wcscales_ptr is not None:
        factors = tl.load(wcscales_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)
    if wtscale_ptr is not None:
        factors *= tl.load(wtscale_ptr).to(tl.float32)
    return factors


@triton.jit
def load_weight(
    qweight_ptr,
    wscales_ptr,
    wzeros_ptr,
    factors,
    rows,
    start,
    mask_n,
    N,
    K,
    SCHEME: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(BLOCK_N, BLOCK_K) float32 weights from k = start on; qweight (N, K // 8) int32, factors (BLOCK_N,) for nvfp4."""
    GROUPS: tl.constexpr = BLOCK_K // GROUP_SIZE
    offs_word = start // 8 + tl.arange(0, BLOCK_K // 8)[None, :]
    words = tl.load(qweight_ptr + rows * (K // 8) + offs_word, mask=mask_n, other=0)
    values = nibbles_to_float(words, SCHEME).reshape(BLOCK_N, GROUPS, GROUP_SIZE)
    offs_g = (start // GROUP_SIZE + tl.arange(0, GROUPS)).to(tl.int64)[None, :]
    scales = tl.load(wscales_ptr + offs_g * N + rows, mask=mask_n, other=0)
    if SCHEME == "nvfp4":
        weight = values * decode_e4m3(scales)[:, :, None] * factors[:, None, None]
    else:
        weight = values * scales.to(tl.float32)[:, :, None]
    if SCHEME == "awq":
        zeros = tl.load(wzeros_ptr + offs_g * N + rows, mask=mask_n, other=0)
        weight = weight + zeros.to(tl.float32)[:, :, None]
    return weight.reshape(BLOCK_N, BLOCK_K)


@triton.jit
def _dequantize_kernel(
    qweight_ptr,  # (N, K // 8) int32
    wscales_ptr,  # (K // GROUP_SIZE, N)
    wzeros_ptr,  # (K // GROUP_SIZE, N), awq only
    wtscale_ptr,  # (1,) or None, wcscales_ptr: (N,) or None; nvfp4 only
    wcscales_ptr,
    proj_up_ptr,  # (N, R)
    out_ptr,  # (N, K + R)
    N,
    K,
    R,
    SCHEME: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = (offs_n < N)[:, None]
    rows = offs_n.to(tl.int64)[:, None]
    start = tl.program_id(1) * BLOCK_K
    if start < K:
        factors = offs_n
        if SCHEME == "nvfp4":
            factors = channel_factors(wtscale_ptr, wcscales_ptr, offs_n, N)
        weight = load_weight(
            qweight_ptr,
            wscales_ptr,
            wzeros_ptr,
            factors,
            rows,
            start,
            mask_n,
            N,
            K,
            SCHEME,
            GROUP_SIZE,
            BLOCK_N,
            BLOCK_K,
        )
        offs_k = start + tl.arange(0, BLOCK_K)[None, :]
        tl.store(out_ptr + rows * (K + R) + offs_k, weight.to(out_ptr.dtype.element_ty), mask=mask_n)
    else:
        offs_r = start - K + tl.arange(0, BLOCK_K)[None, :]
        mask = mask_n & (offs_r < R)
        tile = tl.load(proj_up_ptr + rows * R + offs_r, mask=mask, other=0.0)
        tl.store(out_ptr + rows * (K + R) + K + offs_r, tile.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _expand_kernel(
    qweight_ptr,  # (N, K // 8) int32
    codes_ptr,  # (N, K) int8
    N,
    K,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    mask_n = rows < N
    start = tl.program_id(1) * BLOCK_K
    offs_word = start // 8 + tl.arange(0, BLOCK_K // 8)[None, :]
    words = tl.load(qweight_ptr + rows * (K // 8) + offs_word, mask=mask_n, other=0)
    codes = round_to_bits(nibbles_to_float(words, "int4")).to(tl.int8)
    offs_k = start + tl.arange(0, BLOCK_K)[None, :]
    tl.store(codes_ptr + rows * K + offs_k, codes, mask=mask_n)


def scale_bits(wscales: Tensor) -> Tensor:
    """Scales as kernels load them: e4m3 as its bytes, since not every GPU has the type."""
    return wscales.view(torch.uint8) if wscales.dtype == torch.float8_e4m3fn else wscales


def expand_codes(qweight: Tensor, tile: dict[str, int] | None = None) -> Tensor:
    """One code a byte: (N, K//2) int8 -> (N, K) int8 in -8...7."""
    N, K = qweight.shape[0], qweight.shape[1] * 2
    codes = torch.empty((N, K), dtype=torch.int8, device=qweight.device)
    tile = tile or unpack_tile("dequantize", N, K)
    launch(
        _expand_kernel,
        (-(-N // tile["BLOCK_N"]), K // tile["BLOCK_K"]),
        (
            qweight.view(torch.int32),
            codes,
            N,
            K,
        ),
        {**tile},
    )
    return codes


def dequantize_weight(
    qweight: Tensor,
    wscales: Tensor,
    scheme: str,
    dtype: torch.dtype,
    *,
    proj_up: Tensor | None = None,
    wtscale: Tensor | None = None,
    wcscales: Tensor | None = None,
    wzeros: Tensor | None = None,
    tile: dict[str, int] | None = None,
) -> Tensor:
    """The weight in 16 bits, each value rounded once, with proj_up behind it.

    Args:
        qweight: (N, K//2) int8. wscales, wtscale, wcscales, wzeros: as in format.py.
        scheme: "int4", "nvfp4" or "awq".
        dtype: of the result.
        proj_up: (N, R) or None.
        tile: of tiles.unpack_tile, to measure others.

    Returns:
        (N, K + R) of dtype.
    """
    N, K = qweight.shape[0], qweight.shape[1] * 2
    R = 0 if proj_up is None else proj_up.shape[1]
    out = torch.empty((N, K + R), dtype=dtype, device=qweight.device)
    tile = tile or unpack_tile("dequantize", N, K)
    grid = (-(-N // tile["BLOCK_N"]), K // tile["BLOCK_K"] - (-R // tile["BLOCK_K"]))
    launch(
        _dequantize_kernel,
        grid,
        (
            qweight.view(torch.int32),
            scale_bits(wscales),
            wzeros,
            wtscale,
            wcscales,
            out if proj_up is None else proj_up,
            out,
            N,
            K,
            R,
        ),
        {"SCHEME": scheme, "GROUP_SIZE": GROUP_SIZE[scheme], "enable_fp_fusion": False, **tile},
    )
    return out
