"""Round the columns of a weight one after the other, each error passed on to the columns that follow.

    for i:  units[i]  = nearest(left[i] / scales[i])
            errors[i] = (left[i] - units[i] * scales[i]) / inverse[i, i]
            left[j]  -= inverse[i, j] * errors[i]        for j > i

The inner loop of GPTQ, arXiv:2210.17323. Rows here are columns of the weight. No output channel depends on another, so
a program keeps some of them in registers for all steps. Reference: the loop that svdq_core/quantize/gptq.py takes on a
CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launching.launch import launch
from ..numerics import ROUND_MAGIC

MOST_COLUMNS = 128  # that fit in registers together
# One warp for 16 channels: 64 registers a thread for the block, and sums over its columns need no barrier.
CHANNELS = 16
WARPS = 1


@triton.jit
def _round_columns_kernel(
    left_ptr,  # (C, N) float32
    inverse_ptr,  # (C, C) float32, upper triangular
    scales_ptr,  # (C, N) float32
    units_ptr,  # (C, N) float32
    errors_ptr,  # (C, N) float32
    C,
    N,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    E2M1: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    offs_c = tl.arange(0, BLOCK_C)
    mask = (offs_c < C)[:, None] & mask_n[None, :]
    left = tl.load(left_ptr + offs_c.to(tl.int64)[:, None] * N + offs_n[None, :], mask=mask, other=0.0)
    row_ptr = offs_n
    # Each step's numbers are asked for a step ahead: they take as long to come as a step does.
    next_scale = tl.load(scales_ptr + row_ptr, mask=mask_n, other=1.0)
    next_inverse = tl.load(inverse_ptr + offs_c, mask=(offs_c > 0) & (offs_c < C), other=0.0)
    next_diagonal = tl.load(inverse_ptr)
    for i in range(C):
        scale, inverse, diagonal = next_scale, next_inverse, next_diagonal
        j = tl.minimum(i + 1, C - 1)
        next_scale = tl.load(scales_ptr + j * N + offs_n, mask=mask_n, other=1.0)
        next_inverse = tl.load(inverse_ptr + j * C + offs_c, mask=(offs_c > j) & (offs_c < C), other=0.0)
        next_diagonal = tl.load(inverse_ptr + j * C + j)
        value = tl.sum(tl.where(offs_c[:, None] == i, left, 0.0), axis=0)
        unit = tl.minimum(tl.maximum(tl.math.div_rn(value, scale), LOW), HIGH)
        if E2M1:
            magnitude = tl.abs(unit)
            step = tl.where(magnitude < 2, 0.5, tl.where(magnitude < 4, 1.0, 2.0))
            unit = (unit / step + ROUND_MAGIC - ROUND_MAGIC) * step  # powers of two: exact
        else:
            unit = unit + ROUND_MAGIC - ROUND_MAGIC
        error = tl.math.div_rn(value - unit * scale, diagonal)
        left -= inverse[:, None] * error[None, :]
        tl.store(units_ptr + row_ptr, unit, mask=mask_n)
        tl.store(errors_ptr + row_ptr, error, mask=mask_n)
        row_ptr += N


def round_columns(
    left: Tensor, inverse: Tensor, scales: Tensor, *, low: float, high: float, e2m1: bool, units: Tensor
) -> Tensor:
    """Units and errors of a block of columns; the units go into `units`.

    Args:
        left: (C, N) float32, C at most 128: what is to be rounded, one row for each column of the weight.
        inverse: (C, C) float32, upper triangular, nothing zero on its diagonal.
        scales: (C, N) float32, not zero.
        low, high: smallest and largest unit.
        e2m1: units are the values of that format, not whole numbers.
        units: (C, N) float32, contiguous; overwritten.

    Returns:
        Errors (C, N) float32.

    Raises:
        ValueError: more columns than a program can hold, or units with gaps.
    """
    columns, channels = left.shape
    if columns > MOST_COLUMNS:
        raise ValueError(f"{columns} columns, expected at most {MOST_COLUMNS}")
    if not units.is_contiguous() or units.shape != left.shape:
        raise ValueError(
            f"units: expected a contiguous tensor of shape {tuple(left.shape)}, found {tuple(units.shape)}"
        )
    errors = torch.empty_like(units)
    launch(
        _round_columns_kernel,
        (-(-channels // CHANNELS),),
        (left.contiguous(), inverse.contiguous(), scales.contiguous(), units, errors, columns, channels),
        {
            "LOW": low,
            "HIGH": high,
            "E2M1": e2m1,
            "BLOCK_C": MOST_COLUMNS,
            "BLOCK_N": CHANNELS,
            "enable_fp_fusion": False,
            "num_warps": WARPS,
        },
    )
    return errors
