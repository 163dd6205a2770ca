"""Low-rank factors of a layer and of its LoRAs side by side, with zeros up to a whole number of tiles, in one launch.

Torch's cat would do, but is not among what recording.py can note.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import RANK_MULTIPLE
from ..launching.launch import launch
from ..tiles import power_of_2

ELEMENTS = 4096  # that a program copies


@triton.jit
def _join_rows(
    program, own_ptr, lora_ptr, out_ptr, rows, R, L, TOTAL, stride_lora, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    row = program * BLOCK + tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = row < rows
    dtype = out_ptr.dtype.element_ty
    own = tl.load(own_ptr + row * R + column, mask=inside & (column < R), other=0.0).to(dtype)
    added = column - R
    lora = tl.load(lora_ptr + row * stride_lora + added, mask=inside & (added >= 0) & (added < L), other=0.0).to(dtype)
    tl.store(out_ptr + row * TOTAL + column, tl.where(column < R, own, lora), mask=inside & (column < TOTAL))


@triton.jit(do_not_specialize=["L", "stride_ld", "stride_lu"])
def _join_kernel(
    proj_down_ptr,  # (K, R)
    lora_down_ptr,  # (K, L), rows stride_ld apart
    down_ptr,  # (K, TOTAL)
    proj_up_ptr,  # (N, R)
    lora_up_ptr,  # (N, L), rows stride_lu apart
    up_ptr,  # (N, TOTAL)
    K,
    N,
    R,
    L,
    TOTAL,
    stride_ld,
    stride_lu,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    program, first_up = tl.program_id(0), tl.cdiv(K, BLOCK)
    if program < first_up:
        _join_rows(program, proj_down_ptr, lora_down_ptr, down_ptr, K, R, L, TOTAL, stride_ld, BLOCK, WIDTH)
    else:
        _join_rows(program - first_up, proj_up_ptr, lora_up_ptr, up_ptr, N, R, L, TOTAL, stride_lu, BLOCK, WIDTH)


def join_factors(proj_down: Tensor, lora_down: Tensor, proj_up: Tensor, lora_up: Tensor) -> tuple[Tensor, Tensor]:
    """Both factors of a layer with those of its LoRAs behind them.

    Args:
        proj_down: (K, R), proj_up: (N, R), contiguous. lora_down: (K, L), lora_up: (N, L), unit stride along L.

    Returns:
        (K, T) and (N, T) of the LoRA's dtypes, T = R + L rounded up to a multiple of RANK_MULTIPLE.
    """
    (K, R), (N, L) = proj_down.shape, lora_up.shape
    total = R + L + -(R + L) % RANK_MULTIPLE
    down = torch.empty((K, total), dtype=lora_down.dtype, device=lora_down.device)
    up = torch.empty((N, total), dtype=lora_up.dtype, device=lora_up.device)
    width = power_of_2(total)
    block = max(1, ELEMENTS // width)
    sizes = K, N, R, L, total, lora_down.stride(0), lora_up.stride(0)
    launch(
        _join_kernel,
        (-(-K // block) - (-N // block),),
        (proj_down, lora_down, down, proj_up, lora_up, up, *sizes),
        {"BLOCK": block, "WIDTH": width, "num_warps": 4},
    )
    return down, up
