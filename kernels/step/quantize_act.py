"""Quantize activations with one scale for each group of k, fused with the low-rank down projection.

    x_down          = gelu(x) @ proj_down
    codes, ascales  = quantize((gelu(x) + shift) / smooth_factor)        gelu and shift where asked

Output "packed" is what gemm_w4a4 and gemm_nvfp4 of reference.py read; "fragments" holds the same codes in the order in
which INT4 tensor cores read them (fragments.py); "int8" holds one code a byte for int8 tensor cores; "float" holds
code * scale in the dtype of x, followed by x_down in the same row, for 16-bit tensor cores.
Reference: reference.quantize_act_int4, reference.quantize_act_nvfp4. Layouts: format.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import E2M1_MAX, E4M3_MAX, GELU_SHIFT, GROUP_SIZE_INT4, GROUP_SIZE_NVFP4, INT4_MAX, UINT4_MAX
from ..gpus import generation, takes_ptx
from ..launching.launch import launch
from ..numerics import (
    ROUND_MAGIC,
    decode_e2m1,
    decode_e4m3,
    encode_e2m1,
    encode_e4m3,
    pack_nibbles,
    pack_words,
    read_and_project,
    reciprocal_or_zero,
    round_to_bits,
    rounded_quotient,
)
from ..tiles import fuses_rank, quantizer_tile

E4M3_LIMIT = tl.constexpr(E4M3_MAX)


@triton.jit(do_not_specialize=["M", "stride_ag"])
def _quantize_groups_kernel(
    x_ptr,  # (M, K), rows stride_xm apart
    smooth_ptr,  # (K,)
    proj_down_ptr,  # (K, R)
    codes_ptr,  # (M, K // 2) int8, (M, K) int8 or (M, K) of x.dtype, rows stride_cm apart; or fragments, groups apart
    ascales_ptr,  # (K // GROUP_SIZE, M), rows stride_ag apart
    x_down_ptr,  # (M, R), rows stride_dm apart
    M,
    K,
    R,
    stride_xm,
    stride_cm,
    stride_ag,
    stride_dm,
    SCHEME: tl.constexpr,
    OUTPUT: tl.constexpr,
    PTX: tl.constexpr,
    GELU: tl.constexpr,
    SHIFT: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    CODE_MAX: tl.constexpr,
    HAS_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = (offs_m < M)[:, None]
    rows = offs_m.to(tl.int64)[:, None]
    offs_r = tl.arange(0, BLOCK_R)[None, :]
    x_down = tl.zeros((SPLIT_K, BLOCK_M, BLOCK_R), dtype=tl.float32)

    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        x_ptrs = x_ptr + rows * stride_xm + offs_k[None, :]
        wide, x_down = read_and_project(
            x_ptrs, proj_down_ptr, offs_k, offs_r, mask_m, R, x_down, PTX, GELU, SHIFT, HAS_RANK
        )
        x_hat = rounded_quotient(wide, tl.load(smooth_ptr + offs_k), DTYPE, PTX)

        GROUPS: tl.constexpr = BLOCK_K // GROUP_SIZE
        groups = x_hat.reshape(BLOCK_M, GROUPS, GROUP_SIZE)
        values, codes, stored_scales = groups, groups, groups  # all there is for scheme "none"
        if SCHEME != "none":
            scales = tl.max(tl.abs(groups), axis=2) * (1.0 / CODE_MAX)
            if SCHEME == "nvfp4":
                scales = tl.minimum(scales, E4M3_LIMIT)
            scaled = groups * reciprocal_or_zero(scales)[:, :, None]
            if SHIFT != 0.0:
                scaled = tl.maximum(scaled, 0.0)
            if SCHEME == "nvfp4":
                codes = encode_e2m1(scaled)
                stored_scales = encode_e4m3(scales)
                values = decode_e2m1(codes) * decode_e4m3(stored_scales)[:, :, None]
            else:
                codes = round_to_bits(scaled)
                stored_scales = scales.to(DTYPE)
                values = (codes.to(tl.float32, bitcast=True) - ROUND_MAGIC) * stored_scales.to(tl.float32)[:, :, None]

        if OUTPUT == "float":
            tile = values.reshape(BLOCK_M, BLOCK_K).to(DTYPE)
            tl.store(codes_ptr + rows * stride_cm + offs_k[None, :], tile, mask=mask_m)
        else:
            codes = codes.reshape(BLOCK_M, BLOCK_K)
            if OUTPUT == "packed":
                offs_byte = start // 2 + tl.arange(0, BLOCK_K // 2)[None, :]
                tl.store(codes_ptr + rows * stride_cm + offs_byte, pack_nibbles(codes), mask=mask_m)
            elif OUTPUT == "fragments":
                offs_word = start // 8 + tl.arange(0, BLOCK_K // 8)[None, :]
                words = pack_words(codes)
                places = (offs_word // 8) * stride_cm + (offs_word % 4) * 4 + (offs_word // 4 % 2) * 2
                places += (rows // 16) * 128 + (rows % 8) * 16 + rows // 8 % 2
                tl.store(codes_ptr + places, words, mask=mask_m)
            else:
                tl.store(codes_ptr + rows * stride_cm + offs_k[None, :], codes.to(tl.int8), mask=mask_m)
            offs_g = (start // GROUP_SIZE + tl.arange(0, GROUPS)).to(tl.int64)[None, :]
            tl.store(ascales_ptr + offs_g * stride_ag + rows, stored_scales, mask=mask_m)

    if HAS_RANK:
        tile = tl.sum(x_down, axis=0).to(x_down_ptr.dtype.element_ty)
        tl.store(x_down_ptr + rows * stride_dm + offs_r, tile, mask=mask_m & (offs_r < R))


def quantize_act(
    x: Tensor,
    smooth_factor: Tensor,
    proj_down: Tensor,
    scheme: str,
    *,
    output: str = "packed",
    act_unsigned: bool = False,
    gelu: bool = False,
    pad_rows: int = 1,
    tile: dict[str, int] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Quantize activations for 4-bit codes.

    Args:
        x: (M, K) bfloat16 or float16, unit stride along K; K a multiple of the group size.
        smooth_factor: (K,). proj_down: (K, R), R = 0 for no branch.
        scheme: "int4", "nvfp4", or "none" to smooth only (output "float").
        output: "packed", "fragments" (int4, pad_rows a multiple of 16), "int8" or "float", see above.
        act_unsigned: not for nvfp4: add the GELU shift; int4 codes are 0...15.
        gelu: apply GELU (tanh) to x first.
        tile: a row of the quantizer's table in tiles.py, to measure others.
        pad_rows: round the rows of codes and scales up to a multiple of it; the rows added are undefined.

    Returns:
        codes (M, K//2) int8, (K//64, M//16, 32, 4) int32, (M, K) int8 or (M, K + R) of x.dtype; ascales (K//group, M),
        of x.dtype for int4 and uint8 e4m3 patterns for nvfp4, None for "float"; x_down (M, R) of x.dtype.
    """
    (M, K), R = x.shape, proj_down.shape[1]
    fused = fuses_rank(R, generation(x.device)) if tile is None else R > 0
    if gelu and R and not fused:
        x, gelu = torch.ops.aten.gelu.out(x.detach(), approximate="tanh", out=torch.empty_like(x)), False
    group_size = GROUP_SIZE_INT4 if scheme == "int4" else GROUP_SIZE_NVFP4
    code_max = E2M1_MAX if scheme == "nvfp4" else UINT4_MAX if act_unsigned else INT4_MAX
    rows = -(-M // pad_rows) * pad_rows
    if output == "float":
        codes = torch.empty((rows, K + R), dtype=x.dtype, device=x.device)
        ascales, x_down = None, codes[:M, K:]
    else:
        if output == "fragments":
            codes = torch.empty((K // group_size, rows // 16, 32, 4), dtype=torch.int32, device=x.device)
        else:
            codes = torch.empty((rows, K // 2 if output == "packed" else K), dtype=torch.int8, device=x.device)
        scale_dtype = torch.uint8 if scheme == "nvfp4" else x.dtype
        ascales = torch.empty((K // group_size, rows), dtype=scale_dtype, device=x.device)
        x_down = torch.empty((M, R), dtype=x.dtype, device=x.device)
    tile = tile or quantizer_tile(K, R if fused else 0)
    if R and not fused:
        torch.mm(x.detach(), proj_down.detach().to(x.dtype), out=x_down)
    launch(
        _quantize_groups_kernel,
        (-(-M // tile["BLOCK_M"]),),
        (
            x,
            smooth_factor,
            proj_down,
            codes,
            codes if ascales is None else ascales,
            x_down,
            M,
            K,
            R,
            x.stride(0),
            codes.stride(0),
            0 if ascales is None else ascales.stride(0),
            x_down.stride(0),
        ),
        {
            "SCHEME": scheme,
            "OUTPUT": output,
            "PTX": takes_ptx(x.device),
            "GELU": gelu,
            "SHIFT": GELU_SHIFT if act_unsigned and scheme != "nvfp4" else 0.0,
            "GROUP_SIZE": group_size,
            "CODE_MAX": float(code_max),
            "HAS_RANK": fused,
            "enable_fp_fusion": False,
            **tile,
        },
    )
    return codes, ascales, x_down
