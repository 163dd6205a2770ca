"""Bring 4-bit weights to int8 codes with one scale for each output channel, in scratch memory that lives for one layer.

Other kernels take rows of it along (requantize_rows): both read memory, and one launch is saved.
Reference: reference.requantize_int8 of reference.dequantize_int4 or dequantize_nvfp4. Layouts: format.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import INT8_MAX
from ..launching.launch import launch
from ..numerics import reciprocal_or_zero, round_to_bits
from ..tiles import unpack_tile
from .unpack_weight import GROUP_SIZE, channel_factors, load_weight, scale_bits

INVERSE_INT8_MAX = tl.constexpr(1.0 / INT8_MAX)


@triton.jit
def requantize_rows(
    program,
    qweight_ptr,
    wscales_ptr,
    wtscale_ptr,
    wcscales_ptr,
    codes_ptr,
    channel_scales_ptr,
    N,
    K,
    HAS_CHANNEL_SCALES: tl.constexpr,
    SCHEME: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Int8 codes of BLOCK_N channels, from channel program * BLOCK_N on; arguments as _requantize_kernel."""
    offs_n = program * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = (offs_n < N)[:, None]
    rows = offs_n.to(tl.int64)[:, None]
    factors = offs_n
    if SCHEME == "nvfp4":
        factors = channel_factors(wtscale_ptr, wcscales_ptr, offs_n, N)

    if HAS_CHANNEL_SCALES:
        channel_scales = tl.load(channel_scales_ptr + offs_n, mask=offs_n < N, other=0.0)
    else:
        largest = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
        for start in range(0, K, BLOCK_K):
            weight = load_weight(
                qweight_ptr, wscales_ptr, None, factors, rows, start, mask_n, N, K, SCHEME, GROUP_SIZE, BLOCK_N, BLOCK_K
            )
            largest = tl.maximum(largest, tl.abs(weight))
        channel_scales = tl.max(largest, axis=1) * INVERSE_INT8_MAX
        tl.store(channel_scales_ptr + offs_n, channel_scales, mask=offs_n < N)

    reciprocals = reciprocal_or_zero(channel_scales)[:, None]
    for start in range(0, K, BLOCK_K):
        weight = load_weight(
            qweight_ptr, wscales_ptr, None, factors, rows, start, mask_n, N, K, SCHEME, GROUP_SIZE, BLOCK_N, BLOCK_K
        )
        offs_k = start + tl.arange(0, BLOCK_K)[None, :]
        tl.store(codes_ptr + rows * K + offs_k, round_to_bits(weight * reciprocals).to(tl.int8), mask=mask_n)


@triton.jit
def _requantize_kernel(
    qweight_ptr,  # (N, K // 8) int32
    wscales_ptr,  # (K // GROUP_SIZE, N)
    wtscale_ptr,  # (1,) or None, wcscales_ptr: (N,) or None; nvfp4 only
    wcscales_ptr,
    codes_ptr,  # (N, K) int8
    channel_scales_ptr,  # (N,) float32: read if HAS_CHANNEL_SCALES, written otherwise
    N,
    K,
    HAS_CHANNEL_SCALES: tl.constexpr,
    SCHEME: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    requantize_rows(
        tl.program_id(0),
        qweight_ptr,
        wscales_ptr,
        wtscale_ptr,
        wcscales_ptr,
        codes_ptr,
        channel_scales_ptr,
        N,
        K,
        HAS_CHANNEL_SCALES,
        SCHEME,
        GROUP_SIZE,
        BLOCK_N,
        BLOCK_K,
    )


class Requantization(NamedTuple):
    """A weight on its way to int8.

    Args:
        codes: (N, K) int8, channel_scales: (N,) float32: what gemm_w4a8 takes, once the rows have been done.
        programs: how many calls of requantize_rows that takes.
        arguments, constants: of requantize_rows.
    """

    codes: Tensor
    channel_scales: Tensor
    programs: int
    arguments: tuple
    constants: dict


def plan_requantization(
    qweight: Tensor,
    wscales: Tensor,
    scheme: str,
    wtscale: Tensor | None = None,
    wcscales: Tensor | None = None,
    channel_scales: Tensor | None = None,
    num_warps: int = 0,
) -> Requantization:
    """Everything for requantize_rows, the results not yet written; arguments as requantize_weight.

    Args:
        num_warps: of the kernel that will do it; 0: as tiles.py has it.
    """
    N, K = qweight.shape[0], qweight.shape[1] * 2
    tile = unpack_tile("requantize", N, K)
    num_warps = num_warps or tile["num_warps"]
    block_n = max(1, tile["BLOCK_N"] * num_warps // tile["num_warps"])
    codes = torch.empty((N, K), dtype=torch.int8, device=qweight.device)
    has_channel_scales = channel_scales is not None
    if channel_scales is None:
        channel_scales = torch.empty((N,), dtype=torch.float32, device=qweight.device)
    arguments = qweight.view(torch.int32), scale_bits(wscales), wtscale, wcscales, codes, channel_scales, N, K
    constants = {
        "HAS_CHANNEL_SCALES": has_channel_scales,
        "SCHEME": scheme,
        "GROUP_SIZE": GROUP_SIZE[scheme],
        "BLOCK_N": block_n,
        "BLOCK_K": tile["BLOCK_K"],
    }
    return Requantization(codes, channel_scales, -(-N // block_n), arguments, constants)


def requantize_weight(
    qweight: Tensor,
    wscales: Tensor,
    scheme: str,
    wtscale: Tensor | None = None,
    wcscales: Tensor | None = None,
    channel_scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Bring a 4-bit weight to int8 with one scale for each output channel.

    Args:
        qweight: (N, K//2) int8. wscales: (K//group, N). wtscale, wcscales: nvfp4, as in format.py.
        scheme: "int4" or "nvfp4".
        channel_scales: what an earlier call returned for this weight, (N,) float32; saves the search for the largest.

    Returns:
        (N, K) int8 in -127...127 and (N,) float32.
    """
    plan = plan_requantization(qweight, wscales, scheme, wtscale, wcscales, channel_scales)
    num_warps = unpack_tile("requantize", *plan.codes.shape)["num_warps"]
    constants = {**plan.constants, "num_warps": num_warps, "enable_fp_fusion": False}
    launch(_requantize_kernel, (plan.programs,), plan.arguments, constants)
    return plan.codes, plan.channel_scales
