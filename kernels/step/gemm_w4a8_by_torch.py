"""gemm_w4a8 with torch's int8 product, that of the maker's library, and one kernel for everything behind it.

    out = gelu((qx @ qweight_int8.T) * ascales * channel_scales + x_down @ proj_up.T + bias [+ out])

For GPUs whose int8 products Triton does not reach. The integer sums go through memory, a block of columns at a time.
Reference: reference.gemm_w4a8. Layouts: format.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..epilogue import NOTHING_MORE, Epilogue, destination
from ..gpus import takes_ptx
from ..launching.launch import launch
from ..layer_call import Int8Weight, QuantizedAct
from ..numerics import gelu_tanh
from .gemm_w4a8 import add_branch_and_bias

LEAST_TOKENS = 17  # torch._int_mm refuses fewer on a GPU
MULTIPLE = 8  # of inputs and outputs that it takes
MOST_SUMS = 1 << 25  # of 4 bytes, in memory at a time
TILE = {"BLOCK_M": 32, "BLOCK_N": 128, "BLOCK_R": 16, "num_warps": 4}


@triton.jit(do_not_specialize=["M"])
def _gemm_w4a8_by_torch_kernel(
    sums_ptr,  # (M, N) int32
    ascales_ptr,  # (M,) float32
    channel_scales_ptr,  # (N,) float32
    x_down_ptr,  # (M, R)
    proj_up_ptr,  # (N, R)
    bias_ptr,  # (N,) or None
    out_ptr,  # (M, N), rows stride_om apart
    M,
    N,
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
    BLOCK_R: tl.constexpr,
):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    sums = tl.load(sums_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :], mask=mask, other=0)
    ascales = tl.load(ascales_ptr + offs_m, mask=offs_m < M, other=0.0)
    channel_scales = tl.load(channel_scales_ptr + offs_n, mask=offs_n < N, other=0.0)
    out = sums.to(tl.float32) * ascales[:, None] * channel_scales[None, :]
    out = add_branch_and_bias(
        out, x_down_ptr, proj_up_ptr, bias_ptr, offs_m, offs_n, M, N, R, HAS_RANK, HAS_BIAS, BLOCK_R
    )
    out_ptrs = out_ptr + offs_m.to(tl.int64)[:, None] * stride_om + offs_n[None, :]
    if ACCUMULATE:
        out += tl.load(out_ptrs, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        activated = gelu_tanh(out.to(out_ptr.dtype.element_ty), PTX)
        out = tl.where((offs_n >= gelu_from)[None, :], activated, out)
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


def gemm_w4a8_by_torch(
    quantized: QuantizedAct,
    weight: Int8Weight,
    proj_up: Tensor,
    bias: Tensor | None = None,
    epilogue: Epilogue = NOTHING_MORE,
) -> Tensor:
    """gemm_w4a8.gemm_w4a8, with the same arguments and result, for at least LEAST_TOKENS tokens.

    Args:
        quantized: codes (M, K) int8, K a multiple of MULTIPLE. weight: codes (N, K) int8, N a multiple of MULTIPLE.

    Raises:
        ValueError: accumulate without out.
    """
    (qx, ascales, x_down), (codes, channel_scales) = quantized, weight
    M, N, R = qx.shape[0], codes.shape[0], x_down.shape[1]
    out = destination(epilogue, M, N, x_down)
    columns = max(MULTIPLE, MOST_SUMS // max(M, 1) // MULTIPLE * MULTIPLE)
    for start in range(0, N, columns):
        block = slice(start, min(start + columns, N))
        n = block.stop - block.start
        sums = torch.empty((M, n), dtype=torch.int32, device=qx.device)
        torch._int_mm(qx, codes[block].T, out=sums)
        first = None if epilogue.gelu_from is None else max(epilogue.gelu_from - start, 0)
        part = out[:, block]
        launch(
            _gemm_w4a8_by_torch_kernel,
            (-(-M // TILE["BLOCK_M"]), -(-n // TILE["BLOCK_N"])),
            (
                sums,
                ascales,
                channel_scales[block],
                x_down,
                proj_up[block],
                None if bias is None else bias[block],
                part,
                M,
                n,
                R,
                part.stride(0),
                first or 0,
            ),
            {
                "HAS_BIAS": bias is not None,
                "HAS_RANK": R > 0,
                "ACCUMULATE": epilogue.accumulate,
                "GELU": first is not None and first < n,
                "PTX": takes_ptx(qx.device),
                **TILE,
            },
        )
    return out
