"""Exact 4-bit GEMM on int8 tensor cores, with the low-rank branch and the bias in the epilogue.

    out = sum over groups g of (qx_g @ qweight_g.T) * ascales[g] * wscales[g]  + x_down @ proj_up.T + bias

The codes come one a byte. Each group of 64 k ends in a scaling of its integer sums, so the fp32 units do two operations
for each output and group; integer sums start at a constant that makes them readable as floats without a conversion.
Reference: reference.gemm_w4a4. Layouts: format.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import GROUP_SIZE_INT4
from ..gpus import generation
from ..launching.launch import launch
from ..numerics import ROUND_MAGIC, ROUND_MAGIC_BITS
from ..tiles import gemm_tile
from .gemm_w4a8 import add_branch_and_bias, tile_position

GROUP_SIZE = tl.constexpr(GROUP_SIZE_INT4)


@triton.jit(do_not_specialize=["M", "stride_ag"])
def _gemm_w4a4_kernel(
    qx_ptr,  # (M, K) int8
    qweight_ptr,  # (N, K) int8
    ascales_ptr,  # (K // 64, M) 16-bit float, rows stride_ag apart
    wscales_ptr,  # (K // 64, N) 16-bit float
    x_down_ptr,  # (M, R)
    proj_up_ptr,  # (N, R)
    bias_ptr,  # (N,) or None
    out_ptr,  # (M, N)
    M,
    N,
    K,
    R,
    stride_ag,
    HAS_BIAS: tl.constexpr,
    HAS_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SWIZZLE_M: tl.constexpr,
):
    pid_m, pid_n = tile_position(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, SWIZZLE_M)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, GROUP_SIZE)
    # Rows beyond the end repeat the first ones: their results are never stored, and unmasked loads stay asynchronous.
    rows_m, rows_n = offs_m % M, offs_n % N
    qx_ptrs = qx_ptr + rows_m.to(tl.int64)[:, None] * K + offs_k[None, :]
    qweight_ptrs = qweight_ptr + rows_n.to(tl.int64)[None, :] * K + offs_k[:, None]
    ascales_ptrs, wscales_ptrs = ascales_ptr + rows_m, wscales_ptr + rows_n

    out = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    start = tl.full((BLOCK_M, BLOCK_N), ROUND_MAGIC_BITS, dtype=tl.int32)
    for _ in range(0, K, GROUP_SIZE):
        sums = tl.dot(tl.load(qx_ptrs), tl.load(qweight_ptrs), start, out_dtype=tl.int32).to(tl.float32, bitcast=True)
        ascales = tl.load(ascales_ptrs).to(tl.float32)[:, None]
        # Fused, the constant cancels exactly: a 13-bit sum times an 11-bit scale fits in a float32.
        ascales = tl.broadcast_to(ascales, (BLOCK_M, BLOCK_N))
        scaled = tl.fma(sums, ascales, ascales * -ROUND_MAGIC)
        out += scaled * tl.load(wscales_ptrs).to(tl.float32)[None, :]
        qx_ptrs += GROUP_SIZE
        qweight_ptrs += GROUP_SIZE
        ascales_ptrs += stride_ag
        wscales_ptrs += N

    out = add_branch_and_bias(
        out, x_down_ptr, proj_up_ptr, bias_ptr, offs_m, offs_n, M, N, R, HAS_RANK, HAS_BIAS, BLOCK_R
    )
    out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=(offs_m < M)[:, None] & (offs_n < N)[None, :])


def gemm_w4a4(
    qx: Tensor,
    ascales: Tensor,
    qweight_codes: Tensor,
    wscales: Tensor,
    *,
    x_down: Tensor,
    proj_up: Tensor,
    bias: Tensor | None = None,
    tile: dict[str, int] | None = None,
) -> Tensor:
    """Exact 4-bit GEMM, low-rank up projection and bias in one kernel.

    Args:
        qx: (M, K) int8, ascales: (K//64, M), x_down: (M, R) bfloat16 or float16: from quantize_act(output="int8").
        qweight_codes: (N, K) int8 from expand_codes, wscales: (K//64, N) bfloat16 or float16.
        proj_up: (N, R), R = 0 for no branch. bias: (N,) or None.
        tile: a row of GEMM_W4A4_TILES in tiles.py, to measure others.

    Returns:
        (M, N) of x_down.dtype.
    """
    (M, R), (N, K) = x_down.shape, qweight_codes.shape
    out = torch.empty((M, N), dtype=x_down.dtype, device=qx.device)
    tile = tile or gemm_tile("gemm_w4a4", M, K, generation(qx.device))
    grid = (-(-M // tile["BLOCK_M"]) * -(-N // tile["BLOCK_N"]),)
    launch(
        _gemm_w4a4_kernel,
        grid,
        (
            qx,
            qweight_codes,
            ascales,
            wscales,
            x_down,
            proj_up,
            bias,
            out,
            M,
            N,
            K,
            R,
            ascales.stride(0),
        ),
        {"HAS_BIAS": bias is not None, "HAS_RANK": R > 0, **tile},
    )
    return out
