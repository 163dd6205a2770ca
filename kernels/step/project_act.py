"""The low-rank down projection in shares of k, and what a quantizer must know of a token beforehand, in one pass.

    sums[s]     = gelu(x)[:, k of s] @ proj_down[k of s]
    largest[s]  = max |(gelu(x) + shift) / smooth_factor| over the k of s

For Hopper, whose tensor cores take 64 tokens at a time: too few programs would cover all k of so many, and too few
loads would be under way. Whoever reads the sums adds them in order, so results do not depend on what ran first. Where
kernels can overlap, the next one begins at once and waits for these results itself.
Reference: reference.quantize_act_int8. Layouts: format.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..format import GELU_SHIFT
from ..gpus import takes_ptx
from ..launching.launch import overlaps_launches
from ..numerics import gelu_tanh, let_next_begin, pin_layout, quotient, rounded
from ..tiles import shares_tile


@triton.jit(do_not_specialize=["M"])
def project_kernel(
    x_ptr,  # (M, K), rows stride_xm apart
    smooth_ptr,  # (K,)
    proj_down_ptr,  # (K, R)
    sums_ptr,  # (SHARES, M, R) float32, then largest: (SHARES, M) float32
    M,
    K,
    R,
    stride_xm,
    PTX: tl.constexpr,
    OVERLAP: tl.constexpr,
    GELU: tl.constexpr,
    SHIFT: tl.constexpr,
    SHARES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    if OVERLAP:
        let_next_begin()
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    rows = offs_m.to(tl.int64)
    share = tl.program_id(1)
    offs_r = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    largest = tl.zeros((BLOCK_M, BLOCK_K // 8), dtype=tl.float32)  # of eight values that one thread holds in a row

    # Of a quotient Triton does not know what it is a multiple of, and would copy 8 bytes at a time.
    length = tl.multiple_of(K // SHARES, BLOCK_K)
    for step in range(0, length, BLOCK_K):
        offs_k = share * length + step + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + rows[:, None] * stride_xm + offs_k[None, :], mask=mask_m[:, None], other=0.0)
        wide = x.to(tl.float32)
        if GELU:
            x = pin_layout(rounded(gelu_tanh(wide, PTX), DTYPE, False).to(DTYPE), PTX)
            wide = x.to(tl.float32)
        proj_down = tl.load(proj_down_ptr + offs_k[:, None] * R + offs_r, mask=offs_r < R, other=0.0)
        # Pinned, because Triton 3.6 gives a tile that both the product and other instructions read one buffer too few
        # for a product that is still under way, and the next copy overwrites it.
        sums = tl.dot(x if GELU else pin_layout(x, PTX), proj_down.to(DTYPE), sums)
        if SHIFT != 0.0:
            wide = rounded(wide + SHIFT, DTYPE, True)
        magnitudes = tl.abs(quotient(wide, tl.load(smooth_ptr + offs_k), DTYPE, PTX))
        largest = tl.maximum(largest, tl.max(magnitudes.reshape(BLOCK_M, BLOCK_K // 8, 8), axis=2))

    first = share.to(tl.int64) * M
    tl.store(sums_ptr + (first + rows[:, None]) * R + offs_r, sums, mask=mask_m[:, None] & (offs_r < R))
    largest_ptr = sums_ptr + SHARES * M.to(tl.int64) * R
    tl.store(largest_ptr + first + rows, tl.max(largest, axis=1), mask=mask_m & (tl.program_id(2) == 0))


@triton.jit
def add_shares(sums_ptr, rows, offs_r, mask, M, R, SHARES: tl.constexpr):
    """The sums of all shares, (rows, offs_r) float32; rows (A, 1) int64, offs_r (1, B)."""
    total = tl.load(sums_ptr + rows * R + offs_r, mask=mask, other=0.0)
    for share in tl.static_range(1, SHARES):
        total += tl.load(sums_ptr + (share * M.to(tl.int64) + rows) * R + offs_r, mask=mask, other=0.0)
    return total


@triton.jit
def largest_of_shares(sums_ptr, rows, mask, M, R, SHARES: tl.constexpr):
    """The largest smoothed magnitude of each token, float32; rows (A,) int64."""
    largest_ptr = sums_ptr + SHARES * M.to(tl.int64) * R
    largest = tl.load(largest_ptr + rows, mask=mask, other=0.0)
    for share in tl.static_range(1, SHARES):
        largest = tl.maximum(largest, tl.load(largest_ptr + share * M.to(tl.int64) + rows, mask=mask, other=0.0))
    return largest


class Shares(NamedTuple):
    """A projection on its way.

    Args:
        sums: float32, once the launch is done: (SHARES, M, R) sums, then (SHARES, M) magnitudes; see add_shares and
            largest_of_shares.
        shares: SHARES. overlaps: whether who reads the sums may begin while they are computed, and has to wait itself.
        grid, arguments, constants: of the launch of project_kernel.
    """

    sums: Tensor
    shares: int
    overlaps: bool
    grid: tuple[int, ...]
    arguments: tuple
    constants: dict


def plan_projection(x: Tensor, smooth_factor: Tensor, proj_down: Tensor, act_unsigned: bool, gelu: bool) -> Shares:
    """What projects activations down and finds each token's largest smoothed magnitude.

    Args:
        x: (M, K) bfloat16 or float16, unit stride along K. smooth_factor: (K,). proj_down: (K, R), R > 0.
        act_unsigned: add the GELU shift. gelu: apply GELU (tanh) to x first.
    """
    (M, K), R = x.shape, proj_down.shape[1]
    tile = shares_tile(M, K, R)
    shares, overlaps = tile["SHARES"], tile["OVERLAP"] and overlaps_launches(x.device)
    sums = torch.empty(shares * M * (R + 1), dtype=torch.float32, device=x.device)
    grid = -(-M // tile["BLOCK_M"]), shares, -(-R // tile["BLOCK_R"])
    constants = {
        "PTX": takes_ptx(x.device),
        "OVERLAP": overlaps,
        "GELU": gelu,
        "SHIFT": GELU_SHIFT if act_unsigned else 0.0,
        "SHARES": shares,
        "BLOCK_M": tile["BLOCK_M"],
        "BLOCK_K": tile["BLOCK_K"],
        "BLOCK_R": tile["BLOCK_R"],
        "num_warps": tile["num_warps"],
        "num_stages": tile["num_stages"],
        "enable_fp_fusion": False,
    }
    return Shares(sums, shares, overlaps, grid, (x, smooth_factor, proj_down, sums, M, K, R, x.stride(0)), constants)
