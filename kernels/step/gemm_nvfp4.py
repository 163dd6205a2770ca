"""NVFP4 GEMM on native FP4 tensor cores (Blackwell), with the low-rank branch and the bias in the epilogue.

    out = (dequant(qx) @ dequant(qweight).T) * factors + x_down @ proj_up.T + bias

The hardware applies both group scales. Other GPUs dequantize: E2M1 times E4M3 has six significant bits, so 16-bit
values lose nothing. Reference: reference.gemm_nvfp4. Layouts: format.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import GROUP_SIZE_NVFP4
from ..gpus import generation
from ..launching.launch import launch
from ..tiles import gemm_tile
from .gemm_w4a8 import add_branch_and_bias, tile_position
from .unpack_weight import channel_factors, scale_bits

GROUP_SIZE = tl.constexpr(GROUP_SIZE_NVFP4)


@triton.jit(do_not_specialize=["M"])
def _gemm_nvfp4_kernel(
    qx_ptr,  # (M_PADDED, K // 2) uint8
    qweight_ptr,  # (N, K // 2) uint8
    ascales_ptr,  # (K // 16, M_PADDED) e4m3
    wscales_ptr,  # (K // 16, N) e4m3
    wtscale_ptr,  # (1,) or None
    wcscales_ptr,  # (N,) or None
    x_down_ptr,  # (M, R)
    proj_up_ptr,  # (N, R)
    bias_ptr,  # (N,) or None
    out_ptr,  # (M, N)
    M,
    M_PADDED,
    N,
    K,
    R,
    HAS_BIAS: tl.constexpr,
    HAS_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SWIZZLE_M: tl.constexpr,
):
    pid_m, pid_n = tile_position(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, SWIZZLE_M)
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_byte = tl.arange(0, BLOCK_K // 2)
    offs_g = tl.arange(0, BLOCK_K // GROUP_SIZE)
    # Loads without a mask, and of four bytes or more, are asynchronous. So tokens are padded to whole tiles, their
    # number to a multiple of 16; channels beyond the end repeat the first ones. Results of neither are stored.
    rows_m, rows_n = offs_m.to(tl.int64), (offs_n % N).to(tl.int64)
    qx_ptrs = qx_ptr + rows_m[:, None] * (K // 2) + offs_byte[None, :]
    qweight_ptrs = qweight_ptr + rows_n[None, :] * (K // 2) + offs_byte[:, None]
    ascales_ptrs = ascales_ptr + offs_g.to(tl.int64)[None, :] * M_PADDED + rows_m[:, None]
    wscales_ptrs = wscales_ptr + offs_g.to(tl.int64)[None, :] * N + rows_n[:, None]

    out = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(0, K, BLOCK_K):
        out = tl.dot_scaled(
            tl.load(qx_ptrs), tl.load(ascales_ptrs), "e2m1", tl.load(qweight_ptrs), tl.load(wscales_ptrs), "e2m1", out
        )
        qx_ptrs += BLOCK_K // 2
        qweight_ptrs += BLOCK_K // 2
        ascales_ptrs += (BLOCK_K // GROUP_SIZE) * M_PADDED
        wscales_ptrs += (BLOCK_K // GROUP_SIZE) * N

    out *= channel_factors(wtscale_ptr, wcscales_ptr, offs_n, N)[None, :]
    out = add_branch_and_bias(
        out, x_down_ptr, proj_up_ptr, bias_ptr, offs_m, offs_n, M, N, R, HAS_RANK, HAS_BIAS, BLOCK_R
    )
    out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=(offs_m < M)[:, None] & (offs_n < N)[None, :])


def gemm_nvfp4(
    qx: Tensor,
    ascales: Tensor,
    qweight: Tensor,
    wscales: Tensor,
    *,
    x_down: Tensor,
    proj_up: Tensor,
    bias: Tensor | None = None,
    wtscale: Tensor | None = None,
    wcscales: Tensor | None = None,
    tile: dict[str, int] | None = None,
) -> Tensor:
    """NVFP4 GEMM, low-rank up projection and bias in one kernel; sm_100 and newer.

    Args:
        qx: (M_PADDED, K//2) int8, ascales: (K//16, M_PADDED) e4m3 patterns, x_down: (M, R): from
            quantize_act(scheme="nvfp4") with pad_rows = NVFP4_ROWS.
        qweight: (N, K//2) int8, wscales: (K//16, N) e4m3, wtscale: (1,) or None, wcscales: (N,) or None.
        proj_up: (N, R), R = 0 for no branch. bias: (N,) or None. K a multiple of 128.
        tile: a row of GEMM_NVFP4_TILES in tiles.py, to measure others.

    Returns:
        (M, N) of x_down.dtype.

    Raises:
        ValueError: the rows of qx are not a whole number of tiles.
    """
    (M, R), (N, half), rows = x_down.shape, qweight.shape, qx.shape[0]
    out = torch.empty((M, N), dtype=x_down.dtype, device=qx.device)
    tile = tile or gemm_tile("gemm_nvfp4", M, half * 2, generation(qx.device))
    if rows % tile["BLOCK_M"]:
        raise ValueError(f"gemm_nvfp4: {rows} rows are not a whole number of tiles of {tile['BLOCK_M']}.")
    grid = (-(-M // tile["BLOCK_M"]) * -(-N // tile["BLOCK_N"]),)
    launch(
        _gemm_nvfp4_kernel,
        grid,
        (
            qx.view(torch.uint8),
            qweight.view(torch.uint8),
            ascales.view(torch.float8_e4m3fn),
            scale_bits(wscales).view(torch.float8_e4m3fn),
            wtscale,
            wcscales,
            x_down,
            proj_up,
            bias,
            out,
            M,
            rows,
            N,
            half * 2,
            R,
        ),
        {"HAS_BIAS": bias is not None, "HAS_RANK": R > 0, **tile},
    )
    return out
