"""4-bit weights times a few rows of 16-bit activations: modulation layers, and any layer at a handful of tokens.

    out = x_hat @ dequant(qweight).T + x_down @ proj_up.T + bias        x_hat = (x + shift) / smooth_factor where given

The weights are never rounded and every sum is float32. Reading the weights takes hardly longer than the instructions on
them, so those are few: a code is masked out of its word, multiplied and added (numerics.nibbles_in_place), and scales
and zero points meet the sums of PART codes instead of each weight:

    sum of (code * scale + zero) * x  =  scale * (sum of code * x) + zero * (sum of x)

Reference: reference.gemm_awq, reference.gemm_w4a16. Layouts: format.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import GELU_SHIFT
from ..gpus import takes_ptx
from ..launching.launch import launch
from ..numerics import (
    IN_PLACE_UNIT,
    decode_e4m3,
    in_place_factors,
    nibbles_in_place,
    nibbles_to_float,
    rounded,
    rounded_quotient,
)
from ..tiles import GEMV_ROWS, gemv_tile
from .unpack_weight import GROUP_SIZE, channel_factors, scale_bits


@triton.jit
def _of_parts(values, PARTS: tl.constexpr):
    """What belongs to groups, (N, groups) -> float32 (1, N, PARTS)."""
    N: tl.constexpr = values.shape[0]
    GROUPS: tl.constexpr = values.shape[1]
    values = tl.broadcast_to(values.to(tl.float32)[:, :, None], (N, GROUPS, PARTS // GROUPS))
    return values.reshape(1, N, PARTS)


@triton.jit(do_not_specialize=["M", "R"])
def _gemv_w4a16_kernel(
    x_ptr,  # (M, K), rows stride_xm apart
    smooth_ptr,  # (K,) or None
    qweight_ptr,  # (N, K // 8) int32
    wscales_ptr,  # (K // GROUP_SIZE, N)
    wzeros_ptr,  # (K // GROUP_SIZE, N), awq only
    wtscale_ptr,  # (1,) or None, wcscales_ptr: (N,) or None; nvfp4 only
    wcscales_ptr,
    x_down_ptr,  # (M, R) or None
    proj_up_ptr,  # (N, R) or None
    bias_ptr,  # (N,) or None
    out_ptr,  # (M, N)
    M,
    N,
    K,
    R,
    stride_xm,
    PTX: tl.constexpr,
    SCHEME: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    HAS_SMOOTH: tl.constexpr,
    HAS_RANK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    GROUPS: tl.constexpr = BLOCK_K // GROUP_SIZE
    PART: tl.constexpr = 32 if GROUP_SIZE > 32 else GROUP_SIZE  # 32 codes are the 16 bytes that a thread loads at once
    PARTS: tl.constexpr = BLOCK_K // PART
    offs_m = tl.arange(0, BLOCK_M)
    mask_m = (offs_m < M)[:, None]
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = (offs_n < N)[:, None]
    rows = offs_n.to(tl.int64)[:, None]
    # the last row again instead of a mask, which costs instructions; and loads of 16 bytes need to know the alignment
    words_in_row = tl.multiple_of(K // 8, BLOCK_K // 8)
    word_ptrs = qweight_ptr + tl.minimum(rows, N - 1) * words_in_row + tl.arange(0, BLOCK_K // 8)[None, :]

    sums = tl.zeros((BLOCK_M, BLOCK_N, PARTS), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        words = tl.load(word_ptrs + start // 8)
        offs_g = (start // GROUP_SIZE + tl.arange(0, GROUPS)).to(tl.int64)[None, :]
        scales = tl.load(wscales_ptr + offs_g * N + rows, mask=mask_n, other=0)
        zeros = scales
        if SCHEME == "awq":
            zeros = tl.load(wzeros_ptr + offs_g * N + rows, mask=mask_n, other=0)
        # behind the other loads, because threads wait for each other to exchange x
        offs_k = start + tl.arange(0, BLOCK_K)
        x_hat = tl.load(x_ptr + offs_m[:, None] * stride_xm + offs_k[None, :], mask=mask_m, other=0.0).to(tl.float32)
        if SHIFT != 0.0:
            x_hat = rounded(x_hat + SHIFT, DTYPE, True)
        if HAS_SMOOTH:
            x_hat = rounded_quotient(x_hat, tl.load(smooth_ptr + offs_k), DTYPE, PTX)

        # The codes are reshaped and x is expanded: Triton can follow the layout of what was loaded through a reshape
        # only, and so it is x that moves between threads, not the codes.
        x_hat = x_hat.reshape(BLOCK_M, PARTS, PART)
        if SCHEME == "nvfp4":
            codes = nibbles_to_float(words, SCHEME).reshape(1, BLOCK_N, PARTS, PART)
            sums += _of_parts(decode_e4m3(scales), PARTS) * tl.sum(x_hat[:, None, :, :] * codes, axis=3)
        else:
            codes = nibbles_in_place(words, SCHEME).reshape(1, BLOCK_N, PARTS, PART)
            x_in_place = x_hat * in_place_factors(tl.arange(0, BLOCK_K)).reshape(1, PARTS, PART)
            dots = tl.sum(x_in_place[:, None, :, :] * codes, axis=3)
            x_sums = (tl.sum(x_hat, axis=2) * IN_PLACE_UNIT)[:, None, :]
            if SCHEME == "awq":
                sums += _of_parts(zeros, PARTS) * x_sums
            else:
                dots += -8.0 * x_sums
            sums += _of_parts(scales, PARTS) * dots
    out = tl.sum(sums, axis=2)
    if SCHEME == "nvfp4":
        out *= channel_factors(wtscale_ptr, wcscales_ptr, offs_n, N)[None, :]
    else:
        out *= 1.0 / IN_PLACE_UNIT

    if HAS_RANK:
        for start in range(0, R, BLOCK_R):
            offs_r = (start + tl.arange(0, BLOCK_R))[None, :]
            x_down = tl.load(x_down_ptr + offs_m[:, None] * R + offs_r, mask=mask_m & (offs_r < R), other=0.0)
            proj_up = tl.load(proj_up_ptr + rows * R + offs_r, mask=mask_n & (offs_r < R), other=0.0)
            out += tl.sum(x_down.to(tl.float32)[:, None, :] * proj_up.to(tl.float32)[None, :, :], axis=2)
    if HAS_BIAS:
        out += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
    out_ptrs = out_ptr + offs_m[:, None] * N + offs_n[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask_m & (offs_n < N)[None, :])


def gemv_w4a16(
    x: Tensor,
    qweight: Tensor,
    wscales: Tensor,
    scheme: str,
    *,
    bias: Tensor | None = None,
    wzeros: Tensor | None = None,
    smooth_factor: Tensor | None = None,
    act_unsigned: bool = False,
    x_down: Tensor | None = None,
    proj_up: Tensor | None = None,
    wtscale: Tensor | None = None,
    wcscales: Tensor | None = None,
    tile: dict[str, int] | None = None,
) -> Tensor:
    """4-bit weights times up to GEMV_ROWS rows.

    Args:
        x: (M, K), M <= GEMV_ROWS, unit stride along K, values below 2^63 (for int4 and awq).
        qweight: (N, K//2) int8; wscales, wzeros, wtscale, wcscales: as in format.py.
        scheme: "awq", "int4" or "nvfp4".
        bias: (N,) or None.
        smooth_factor: (K,) or None; act_unsigned adds the GELU shift before it.
        x_down: (M, R), proj_up: (N, R), or None.
        tile: of tiles.gemv_tile, to measure others.

    Returns:
        (M, N) of x.dtype.
    """
    (M, K), N = x.shape, qweight.shape[0]
    if M > GEMV_ROWS:
        raise ValueError(f"gemv_w4a16: {M} rows, at most {GEMV_ROWS}. Dequantize the weight for more.")
    R = 0 if x_down is None else x_down.shape[1]
    out = torch.empty((M, N), dtype=x.dtype, device=x.device)
    tile = tile or gemv_tile(M, K)
    launch(
        _gemv_w4a16_kernel,
        (-(-N // tile["BLOCK_N"]),),
        (
            x,
            smooth_factor,
            qweight.view(torch.int32),
            scale_bits(wscales),
            wzeros,
            wtscale,
            wcscales,
            x_down,
            proj_up,
            bias,
            out,
            M,
            N,
            K,
            R,
            x.stride(0),
        ),
        {
            "PTX": takes_ptx(x.device),
            "SCHEME": scheme,
            "GROUP_SIZE": GROUP_SIZE[scheme],
            "SHIFT": GELU_SHIFT if act_unsigned else 0.0,
            "HAS_SMOOTH": smooth_factor is not None,
            "HAS_RANK": R > 0,
            "HAS_BIAS": bias is not None,
            "BLOCK_M": 1 << (M - 1).bit_length(),
            "BLOCK_R": 16,
            **tile,
        },
    )
    return out
