"""Bring 4-bit weights to int8 codes with one scale for each output channel, in scratch memory that lives for one layer.

Other kernels take rows of it along (requantize_rows): both read memory, and one launch is saved.
Reference: reference.requantize_int8 of reference.dequantize_int4 or dequantize_nvfp4. Layouts: format.py.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import INT8_MAX
from ..launching.launch import launch
from ..layer_call import Int8Weight
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
        weight: codes (N, K) int8, channel_scales (N,) float32, once the rows have been done.
        pointers: the tensors of requantize_rows, in its order.
        scheme: "int4" or "nvfp4". has_channel_scales: they are known, and only read.
    """

    weight: Int8Weight
    pointers: tuple[Tensor | None, ...]
    scheme: str
    has_channel_scales: bool

    def constants(self, num_warps: int) -> dict:
        """Those of requantize_rows in a kernel of so many warps."""
        tile = unpack_tile("requantize", *self.weight.codes.shape)
        return {
            "HAS_CHANNEL_SCALES": self.has_channel_scales,
            "SCHEME": self.scheme,
            "GROUP_SIZE": GROUP_SIZE[self.scheme],
            "BLOCK_N": max(1, tile["BLOCK_N"] * num_warps // tile["num_warps"]),
            "BLOCK_K": tile["BLOCK_K"],
        }


def plan_requantization(tensors: Mapping[str, Tensor], scheme: str) -> Requantization:
    """Everything for requantize_rows, the results not yet written.

    Args:
        tensors: qweight, wscales and where there are some wtscale, wcscales, channel_scales, as in format.py.
        scheme: "int4" or "nvfp4".
    """
    qweight, channel_scales = tensors["qweight"], tensors.get("channel_scales")
    N, K = qweight.shape[0], qweight.shape[1] * 2
    codes = torch.empty((N, K), dtype=torch.int8, device=qweight.device)
    has_channel_scales = channel_scales is not None
    if channel_scales is None:
        channel_scales = torch.empty((N,), dtype=torch.float32, device=qweight.device)
    extra = tensors.get("wtscale"), tensors.get("wcscales")
    pointers = qweight.view(torch.int32), scale_bits(tensors["wscales"]), *extra, codes, channel_scales
    return Requantization(Int8Weight(codes, channel_scales), pointers, scheme, has_channel_scales)


def requantize_weight(tensors: Mapping[str, Tensor], scheme: str) -> Int8Weight:
    """Bring a 4-bit weight to int8 with one scale for each output channel.

    Args:
        tensors: qweight (N, K//2) int8, wscales (K//group, N), and where there are some wtscale and wcscales, as in
            format.py. channel_scales, what an earlier call returned for this weight, saves the search for the largest.
        scheme: "int4" or "nvfp4".

    Returns:
        (N, K) int8 in -127...127 and (N,) float32.
    """
    plan = plan_requantization(tensors, scheme)
    N, K = plan.weight.codes.shape
    num_warps = unpack_tile("requantize", N, K)["num_warps"]
    constants = {**plan.constants(num_warps), "num_warps": num_warps, "enable_fp_fusion": False}
    launch(_requantize_kernel, (-(-N // constants["BLOCK_N"]),), (*plan.pointers, N, K), constants)
    return plan.weight
