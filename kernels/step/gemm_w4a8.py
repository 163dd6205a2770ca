"""Int8 GEMM with the low-rank branch, the bias, a sum of two layers and a GELU behind them in the epilogue.

    out = gelu((qx @ qweight_int8.T) * ascales * channel_scales + x_down @ proj_up.T + bias [+ out])

For every GPU with int8 matrix instructions; gemm_w4a8_hopper.py is the same for Hopper.
Reference: reference.gemm_w4a8. Layouts: format.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..epilogue import NOTHING_MORE, Epilogue, destination
from ..gpus import generation, takes_ptx
from ..launching.launch import launch
from ..layer_call import Int8Weight, QuantizedAct
from ..numerics import gelu_tanh
from ..tiles import gemm_tile


@triton.jit
def tile_position(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWIZZLE_M: tl.constexpr):
    """Row and column of a tile; SWIZZLE_M tiles of a column are neighbours, so that they share weights in the cache."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    band = tile // (SWIZZLE_M * tiles_n)
    first_m = band * SWIZZLE_M
    height = tl.minimum(tiles_m - first_m, SWIZZLE_M)
    within = tile % (SWIZZLE_M * tiles_n)
    return first_m + within % height, within // height


@triton.jit
def add_low_rank(
    out,
    x_down_ptr,
    proj_up_ptr,
    offs_m,
    offs_n,
    M,
    N,
    R,
    BLOCK_R: tl.constexpr,
):
    """out + x_down @ proj_up.T for one tile; x_down (M, R), proj_up (N, R), R a multiple of 16."""
    for start in range(0, R, BLOCK_R):
        offs_r = start + tl.arange(0, BLOCK_R)
        x_down = tl.load(
            x_down_ptr + offs_m.to(tl.int64)[:, None] * R + offs_r[None, :],
            mask=(offs_m < M)[:, None] & (offs_r < R)[None, :],
            other=0.0,
        )
        proj_up = tl.load(
            proj_up_ptr + offs_n[None, :] * R + offs_r[:, None],
            mask=(offs_n < N)[None, :] & (offs_r < R)[:, None],
            other=0.0,
        )
        out = tl.dot(x_down, proj_up.to(x_down.dtype), out)
    return out


@triton.jit
def add_branch_and_bias(
    out,
    x_down_ptr,
    proj_up_ptr,
    bias_ptr,
    offs_m,
    offs_n,
    M,
    N,
    R,
    HAS_RANK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """out (BLOCK_M, BLOCK_N) float32 with x_down @ proj_up.T and the bias added, where there are such."""
    if HAS_RANK:
        out = add_low_rank(out, x_down_ptr, proj_up_ptr, offs_m, offs_n, M, N, R, BLOCK_R)
    if HAS_BIAS:
        out += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
    return out


@triton.jit(do_not_specialize=["M"])
def _gemm_w4a8_kernel(
    qx_ptr,  # (M, K) int8
    qweight_ptr,  # (N, K) int8
    ascales_ptr,  # (M,) float32
    channel_scales_ptr,  # (N,) float32
    x_down_ptr,  # (M, R)
    proj_up_ptr,  # (N, R)
    bias_ptr,  # (N,) or None
    out_ptr,  # (M, N), rows stride_om apart
    M,
    N,
    K,
    R,
    stride_om,
    gelu_from,
    HAS_BIAS: tl.constexpr,
    HAS_RANK: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    GELU: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SWIZZLE_M: tl.constexpr,
):
    pid_m, pid_n = tile_position(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, SWIZZLE_M)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    # Rows beyond the end repeat the first ones: their results are never stored, and unmasked loads stay asynchronous.
    qx_ptrs = qx_ptr + (offs_m % M).to(tl.int64)[:, None] * K + offs_k[None, :]
    qweight_ptrs = qweight_ptr + (offs_n % N).to(tl.int64)[None, :] * K + offs_k[:, None]

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for _ in range(0, K, BLOCK_K):
        accumulator = tl.dot(tl.load(qx_ptrs), tl.load(qweight_ptrs), accumulator, out_dtype=tl.int32)
        qx_ptrs += BLOCK_K
        qweight_ptrs += BLOCK_K

    ascales = tl.load(ascales_ptr + offs_m, mask=offs_m < M, other=0.0)
    channel_scales = tl.load(channel_scales_ptr + offs_n, mask=offs_n < N, other=0.0)
    out = accumulator.to(tl.float32) * ascales[:, None] * channel_scales[None, :]
    out = add_branch_and_bias(
        out, x_down_ptr, proj_up_ptr, bias_ptr, offs_m, offs_n, M, N, R, HAS_RANK, HAS_BIAS, BLOCK_R
    )
    out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * stride_om + offs_n[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    if ACCUMULATE:
        out += tl.load(out_ptrs, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        activated = gelu_tanh(out.to(out_ptr.dtype.element_ty), PTX)
        out = tl.where((offs_n >= gelu_from)[None, :], activated, out)
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


def gemm_w4a8(
    quantized: QuantizedAct,
    weight: Int8Weight,
    proj_up: Tensor,
    bias: Tensor | None = None,
    epilogue: Epilogue = NOTHING_MORE,
    *,
    tile: dict[str, int] | None = None,
) -> Tensor:
    """Int8 GEMM, low-rank up projection, bias, sum and GELU in one kernel.

    Args:
        quantized: codes (M, K) int8, ascales (M,) float32, x_down (M, R) bfloat16 or float16, of quantize_act_int8.
        weight: codes (N, K) int8, channel_scales (N,) float32, of requantize_weight. K a multiple of 64.
        proj_up: (N, R), R = 0 for no branch. bias: (N,) or None.
        epilogue: what out holds is added in float32; what goes through GELU (tanh form) is rounded before and after.
        tile: a row of GEMM_W4A8_TILES in tiles.py, to measure others.

    Returns:
        (M, N) of x_down.dtype: the epilogue's out, if it has one.

    Raises:
        ValueError: accumulate without out.
    """
    (qx, ascales, x_down), (qweight_int8, channel_scales) = quantized, weight
    (M, K), N, R = qx.shape, qweight_int8.shape[0], x_down.shape[1]
    out = destination(epilogue, M, N, x_down)
    tile = tile or gemm_tile("gemm_w4a8", M, K, generation(qx.device))
    grid = (-(-M // tile["BLOCK_M"]) * -(-N // tile["BLOCK_N"]),)
    launch(
        _gemm_w4a8_kernel,
        grid,
        (
            qx,
            qweight_int8,
            ascales,
            channel_scales,
            x_down,
            proj_up,
            bias,
            out,
            M,
            N,
            K,
            R,
            out.stride(0),
            epilogue.gelu_from or 0,
        ),
        {
            "HAS_BIAS": bias is not None,
            "HAS_RANK": R > 0,
            "ACCUMULATE": epilogue.accumulate,
            "GELU": epilogue.gelu_from is not None,
            "PTX": takes_ptx(qx.device),
            **tile,
        },
    )
    return out
