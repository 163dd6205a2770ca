"""Group scales of a weight with the least weighted squared rounding error, all candidates in one pass.

int     candidates are absmax / high times 1, 0.975, 0.95, ... rounded to the stored dtype
e2m1    candidates are the e4m3 numbers around absmax / high / tensor: the nearest, 4 to 1 below it, 1 to 6 above it

Reference: fit_scales of svdq_core/quantize/round.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import E4M3_MAX
from ..launching.launch import launch
from ..numerics import ROUND_MAGIC, decode_e4m3, encode_e4m3, rounded

E4M3_LIMIT = tl.constexpr(E4M3_MAX)
LARGEST_E4M3 = tl.constexpr(0x7E)  # as bits; the next is NaN
RATIO_STEP = tl.constexpr(0.025)
ROWS = {False: 16, True: 4}  # of a program; by whether units are e2m1, which spills with more
WARPS = 4


@triton.jit
def _snap(units, HIGH: tl.constexpr, E2M1: tl.constexpr):
    units = tl.minimum(tl.maximum(units, -HIGH), HIGH)
    if E2M1:
        magnitude = tl.abs(units)
        step = tl.where(magnitude < 2, 0.5, tl.where(magnitude < 4, 1.0, 2.0))
        return (units / step + ROUND_MAGIC - ROUND_MAGIC) * step  # powers of two: exact
    return units + ROUND_MAGIC - ROUND_MAGIC


@triton.jit
def _fit_scales_kernel(
    residual_ptr,  # (N, K) float32
    importance_ptr,  # (K,) float32, if HAS_IMPORTANCE
    tensor_ptr,  # (1,) float32, if E2M1
    scales_ptr,  # (N, K // GROUP_SIZE): 16-bit, or uint8 bits of e4m3
    values_ptr,  # (N, K) float32, if HAS_VALUES
    N,
    K,
    HIGH: tl.constexpr,
    E2M1: tl.constexpr,
    COUNT: tl.constexpr,
    HAS_IMPORTANCE: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    GROUPS: tl.constexpr = BLOCK_K // GROUP_SIZE
    DTYPE: tl.constexpr = scales_ptr.dtype.element_ty
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    mask = rows < N
    start = tl.program_id(1) * BLOCK_K
    offs_k = start + tl.arange(0, BLOCK_K)[None, :]
    groups = tl.load(residual_ptr + rows * K + offs_k, mask=mask, other=0.0).reshape(BLOCK_N, GROUPS, GROUP_SIZE)
    importance = groups
    if HAS_IMPORTANCE:
        importance = tl.load(importance_ptr + start + tl.arange(0, BLOCK_K)).reshape(1, GROUPS, GROUP_SIZE)
    base = tl.math.div_rn(tl.max(tl.abs(groups), axis=2), HIGH)
    factor = 1.0
    nearest = tl.zeros((BLOCK_N, GROUPS), dtype=tl.int32)
    if E2M1:
        factor = tl.load(tensor_ptr)
        nearest = encode_e4m3(tl.minimum(tl.math.div_rn(base, base * 0 + factor), E4M3_LIMIT)).to(tl.int32)
    best_error = tl.full((BLOCK_N, GROUPS), float("inf"), dtype=tl.float32)
    best_scale = tl.full((BLOCK_N, GROUPS), 1.0, dtype=tl.float32)
    best_bits = tl.full((BLOCK_N, GROUPS), 1, dtype=tl.int32)
    for i in tl.static_range(COUNT):
        if E2M1:
            # 0, then 4 to 1 below, then 1 to 6 above
            bits = tl.minimum(tl.maximum(nearest + (i - (0 if i == 0 else (5 if i < 5 else 4))), 1), LARGEST_E4M3)
            scale = decode_e4m3(bits.to(tl.uint8)) * factor
        else:
            scale = rounded(base * (1.0 - RATIO_STEP * i), DTYPE, True)
            scale = tl.where(scale > 0, scale, 1.0)
            bits = best_bits
        wide = tl.broadcast_to(scale[:, :, None], (BLOCK_N, GROUPS, GROUP_SIZE))
        lost = _snap(tl.math.div_rn(groups, wide), HIGH, E2M1) * wide - groups
        lost = lost * lost
        if HAS_IMPORTANCE:
            lost = lost * importance
        error = tl.sum(lost, axis=2)
        better = error < best_error
        best_error = tl.where(better, error, best_error)
        best_scale = tl.where(better, scale, best_scale)
        best_bits = tl.where(better, bits, best_bits)
    offs_g = start // GROUP_SIZE + tl.arange(0, GROUPS)[None, :]
    stored = best_bits.to(tl.uint8) if E2M1 else best_scale.to(DTYPE)
    tl.store(scales_ptr + rows * (K // GROUP_SIZE) + offs_g, stored, mask=mask)
    if HAS_VALUES:
        wide = tl.broadcast_to(best_scale[:, :, None], (BLOCK_N, GROUPS, GROUP_SIZE))
        values = _snap(tl.math.div_rn(groups, wide), HIGH, E2M1) * wide
        tl.store(values_ptr + rows * K + offs_k, values.reshape(BLOCK_N, BLOCK_K), mask=mask)


def fit_group_scales(
    residual: Tensor,
    high: float,
    *,
    group_size: int,
    count: int,
    dtype: torch.dtype,
    importance: Tensor | None = None,
    tensor: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """The scale of each group, and what the rounded weight stands for.

    Args:
        residual: (N, K) float32, contiguous; K a multiple of 64.
        high: largest unit; the smallest is -high.
        group_size: 16 or 64 columns.
        count: how many candidates, up to 13 for int, 11 for e2m1; 1 for the first alone.
        dtype: of int scales.
        importance: (K,) float32 weight of each column's error, or None for all ones.
        tensor: (1,) scale of the whole weight for e2m1, or None for int.
        values: (N, K) float32, overwritten with the rounded weight, or None.

    Returns:
        (N, K // group_size) of dtype, or float8_e4m3fn.

    Raises:
        ValueError: the residual has gaps, or K is no multiple of 64.
    """
    N, K = residual.shape
    if not residual.is_contiguous() or K % 64:
        raise ValueError(f"residual {tuple(residual.shape)}: expected a contiguous tensor, columns in multiples of 64")
    e2m1 = tensor is not None
    scales = torch.empty((N, K // group_size), dtype=torch.uint8 if e2m1 else dtype, device=residual.device)
    block = next(size for size in (256, 128, 64) if K % size == 0)
    launch(
        _fit_scales_kernel,
        (-(-N // ROWS[e2m1]), K // block),
        (
            residual,
            None if importance is None else importance.float().contiguous(),
            None if tensor is None else tensor.float(),
            scales,
            values,
            N,
            K,
        ),
        {
            "HIGH": float(high),
            "E2M1": e2m1,
            "COUNT": count,
            "HAS_IMPORTANCE": importance is not None,
            "HAS_VALUES": values is not None,
            "GROUP_SIZE": group_size,
            "BLOCK_N": ROWS[e2m1],
            "BLOCK_K": block,
            "enable_fp_fusion": False,
            "num_warps": WARPS,
        },
    )
    return scales.view(torch.float8_e4m3fn) if e2m1 else scales
