"""Quantize activations to int8 with one scale for each token, fused with the low-rank down projection.

    x_down          = gelu(x) @ proj_down
    codes, ascales  = quantize((gelu(x) + shift) / smooth_factor)        gelu and shift where asked

A program reads its rows twice: first for the maximum and the projection, then, backwards, for the codes. Backwards
because the end of a row is what the cache still holds. On Hopper project_act.py has read them the first time. Further
programs of the same launch may bring the layer's weight to int8; where launches overlap, they run beside project_act.
Reference: reference.quantize_act_int8. Layouts: format.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import GELU_SHIFT, INT8_MAX
from ..gpus import generation, takes_ptx
from ..launching.launch import launch
from ..layer_call import QuantizedAct
from ..numerics import (
    gelu_tanh,
    quotient,
    read_and_project,
    reciprocal_or_zero,
    round_to_bits,
    rounded,
    rounded_quotient,
    wait_for_previous,
)
from ..tiles import Projection, added_columns, choose_projection, quantizer_tile
from .project_act import add_shares, largest_of_shares, plan_projection, project_kernel
from .requantize_weight import Requantization, requantize_rows

INVERSE_INT8_MAX = tl.constexpr(1.0 / INT8_MAX)
# constant of requantize_rows -> its name beside the quantizer's
WEIGHT_CONSTANTS = {
    "HAS_CHANNEL_SCALES": "HAS_CHANNEL_SCALES",
    "SCHEME": "SCHEME",
    "GROUP_SIZE": "GROUP_SIZE",
    "BLOCK_N": "WEIGHT_BLOCK_N",
    "BLOCK_K": "WEIGHT_BLOCK_K",
}


@triton.jit
def _quantize_tokens(
    program,
    x_ptr,
    smooth_ptr,
    proj_down_ptr,
    codes_ptr,
    ascales_ptr,
    x_down_ptr,
    sums_ptr,
    M,
    K,
    R,
    stride_xm,
    PTX: tl.constexpr,
    GELU: tl.constexpr,
    SHIFT: tl.constexpr,
    HAS_RANK: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    """BLOCK_M tokens, from token program * BLOCK_M on; arguments as the kernel's."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    offs_m = program * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = (offs_m < M)[:, None]
    rows = offs_m.to(tl.int64)[:, None]
    offs_r = tl.arange(0, BLOCK_R)[None, :]
    x_down = tl.zeros((SPLIT_K, BLOCK_M, BLOCK_R), dtype=tl.float32)
    largest = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)

    if SHARES == 0:
        for start in range(0, K, BLOCK_K):
            offs_k = start + tl.arange(0, BLOCK_K)
            x_ptrs = x_ptr + rows * stride_xm + offs_k[None, :]
            wide, x_down = read_and_project(
                x_ptrs, proj_down_ptr, offs_k, offs_r, mask_m, R, x_down, PTX, GELU, SHIFT, HAS_RANK
            )
            x_hat = quotient(wide, tl.load(smooth_ptr + offs_k), DTYPE, PTX)
            largest = tl.maximum(largest, tl.abs(x_hat))
        largest_of_token = tl.max(largest, axis=1)
    else:
        largest_of_token = largest_of_shares(sums_ptr, offs_m.to(tl.int64), offs_m < M, M, R, SHARES)
        for start in range(0, R, BLOCK_R):
            columns = start + offs_r
            mask = mask_m & (columns < R)
            total = add_shares(sums_ptr, rows, columns, mask, M, R, SHARES)
            tl.store(x_down_ptr + rows * R + columns, total.to(x_down_ptr.dtype.element_ty), mask=mask)

    # Rounding keeps the order, so the largest quotient rounds to the largest rounded one.
    scales = largest_of_token.to(DTYPE).to(tl.float32) * INVERSE_INT8_MAX
    reciprocals = reciprocal_or_zero(scales)[:, None]
    tl.store(ascales_ptr + offs_m, scales, mask=offs_m < M)
    if HAS_RANK:
        tl.store(
            x_down_ptr + rows * R + offs_r,
            tl.sum(x_down, axis=0).to(x_down_ptr.dtype.element_ty),
            mask=mask_m & (offs_r < R),
        )

    for step in range(0, K, BLOCK_K):
        offs_k = (K - BLOCK_K - step) + tl.arange(0, BLOCK_K)
        wide = tl.load(x_ptr + rows * stride_xm + offs_k[None, :], mask=mask_m, other=0.0).to(tl.float32)
        if GELU:
            wide = rounded(gelu_tanh(wide, PTX), DTYPE, False)
        if SHIFT != 0.0:
            wide = rounded(wide + SHIFT, DTYPE, True)
        x_hat = rounded_quotient(wide, tl.load(smooth_ptr + offs_k), DTYPE, PTX)
        codes = round_to_bits(x_hat * reciprocals).to(tl.int8)
        tl.store(codes_ptr + rows * K + offs_k[None, :], codes, mask=mask_m)


@triton.jit(do_not_specialize=["M"])
def _quantize_tokens_kernel(
    x_ptr,  # (M, K), rows stride_xm apart
    smooth_ptr,  # (K,)
    proj_down_ptr,  # (K, R)
    codes_ptr,  # (M, K) int8
    ascales_ptr,  # (M,) float32
    x_down_ptr,  # (M, R)
    sums_ptr,  # of project_act if SHARES
    qweight_ptr,  # from here on to N if SCHEME: of requantize_rows
    wscales_ptr,
    wtscale_ptr,
    wcscales_ptr,
    weight_codes_ptr,
    channel_scales_ptr,
    M,
    K,
    R,
    stride_xm,
    N,
    PTX: tl.constexpr,
    OVERLAP: tl.constexpr,
    GELU: tl.constexpr,
    SHIFT: tl.constexpr,
    HAS_RANK: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT_K: tl.constexpr,
    HAS_CHANNEL_SCALES: tl.constexpr,
    SCHEME: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    WEIGHT_BLOCK_N: tl.constexpr,
    WEIGHT_BLOCK_K: tl.constexpr,
):
    # Beside project_act the weight's rows come first, and need not wait for it.
    rows_first: tl.constexpr = OVERLAP and SCHEME is not None
    first = tl.cdiv(N, WEIGHT_BLOCK_N) if rows_first else 0
    program, token_programs = tl.program_id(0) - first, tl.cdiv(M, BLOCK_M)
    if (program >= 0) & (program < token_programs):
        if OVERLAP:
            wait_for_previous()
        _quantize_tokens(
            program, x_ptr, smooth_ptr, proj_down_ptr, codes_ptr, ascales_ptr, x_down_ptr, sums_ptr, M, K, R, stride_xm,
            PTX, GELU, SHIFT, HAS_RANK, SHARES, BLOCK_M, BLOCK_K, BLOCK_R, SPLIT_K,
        )  # fmt: skip
    elif SCHEME is not None:
        row_program = tl.program_id(0) if rows_first else program - token_programs
        requantize_rows(
            row_program, qweight_ptr, wscales_ptr, wtscale_ptr, wcscales_ptr, weight_codes_ptr, channel_scales_ptr, N,
            K, HAS_CHANNEL_SCALES, SCHEME, GROUP_SIZE, WEIGHT_BLOCK_N, WEIGHT_BLOCK_K,
        )  # fmt: skip


def quantize_act_int8(
    x: Tensor,
    smooth_factor: Tensor,
    proj_down: Tensor,
    act_unsigned: bool = False,
    gelu: bool = False,
    *,
    projection: Projection | None = None,
    weight: Requantization | None = None,
) -> QuantizedAct:
    """Quantize activations for gemm_w4a8.

    Args:
        x: (M, K) bfloat16 or float16, unit stride along K; K a multiple of 16.
        smooth_factor: (K,). proj_down: (K, R), R = 0 for no branch.
        act_unsigned: add the GELU shift that the stored bias expects.
        gelu: apply GELU (tanh) to x first.
        projection: who computes x_down; None: what tiles.choose_projection says of the GPU.
        weight: of plan_requantization: a weight whose rows the same launch brings to int8.

    Returns:
        codes (M, K) int8 in -127...127, ascales (M,) float32, x_down (M, R) of x.dtype.
    """
    (M, K), R = x.shape, proj_down.shape[1]
    codes = torch.empty((M, K), dtype=torch.int8, device=x.device)
    ascales = torch.empty((M,), dtype=torch.float32, device=x.device)
    x_down = torch.empty((M, R), dtype=x.dtype, device=x.device)
    sums, shares, overlap = x_down, 0, False
    projection = projection or choose_projection(K, R, generation(x.device))
    if projection is Projection.SHARED:
        plan = plan_projection(x, smooth_factor, proj_down, act_unsigned, gelu)
        launch(project_kernel, plan.grid, plan.arguments, plan.constants)
        sums, shares, overlap = plan.sums, plan.shares, plan.overlaps
        tile = {**quantizer_tile(K, 0), "BLOCK_R": added_columns(R)}
    elif projection is Projection.APART:
        if gelu:
            x, gelu = torch.ops.aten.gelu.out(x.detach(), approximate="tanh", out=torch.empty_like(x)), False
        torch.mm(x.detach(), proj_down.detach().to(x.dtype), out=x_down)
        tile = quantizer_tile(K, 0)
    else:
        tile = quantizer_tile(K, R)
    if weight is None:
        pointers, N, constants, programs = (None,) * 6, 0, dict.fromkeys(WEIGHT_CONSTANTS.values()), 0
    else:
        pointers, N = weight.pointers, weight.weight.codes.shape[0]
        constants = {WEIGHT_CONSTANTS[name]: value for name, value in weight.constants(tile["num_warps"]).items()}
        programs = -(-N // constants["WEIGHT_BLOCK_N"])
    launch(
        _quantize_tokens_kernel,
        (-(-M // tile["BLOCK_M"]) + programs,),
        (x, smooth_factor, proj_down, codes, ascales, x_down, sums, *pointers, M, K, R, x.stride(0), N),
        {
            "PTX": takes_ptx(x.device),
            "OVERLAP": overlap,
            "GELU": gelu,
            "SHIFT": GELU_SHIFT if act_unsigned else 0.0,
            "HAS_RANK": projection is Projection.FUSED,
            "SHARES": shares,
            "enable_fp_fusion": False,
            **({"launch_pdl": True} if overlap else {}),
            **tile,
            **constants,
        },
    )
    return QuantizedAct(codes, ascales, x_down)
