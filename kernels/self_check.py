"""One small problem through an instruction whose support rests on more than the compiler's word, at first use.

Native INT4 depends on a register order that Triton documents as unspecified, and native FP4 could not be run when this
was written. A wrong result here sends layers to the next step of the ladder instead of into an image.
"""

from functools import cache

import torch
from torch import Tensor

from . import reference
from .format import GROUP_SIZE_INT4
from .packing import pack_nibbles
from .tiles import native_int4_tile

# Twenty groups of 64 k go round every kernel's ring of stages more than once. INT4 has a tile for up to 128 rows and
# one for more.
FEW, MANY, N, K, R = 128, 256, 128, 1280, 32
TOLERANCE = 1e-2  # of the largest value; wrong registers are off by the size of the values themselves


def _require_close(actual: Tensor, expected: Tensor, what: str) -> None:
    error = ((actual.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
    if not error <= TOLERANCE:
        raise RuntimeError(f"{what} gave wrong results in a self-check: relative error {error:.2g}")


def _draw(M: int, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], list[Tensor], torch.Generator]:
    """Packed codes of activations and weight, x_down and proj_up, and what draws more."""
    generator = torch.Generator().manual_seed(0)
    codes = [torch.randint(0, 16, (rows, K), generator=generator, dtype=torch.uint8) for rows in (M, N)]
    factors = [torch.randn(rows, R, generator=generator).to(device, dtype) for rows in (M, N)]
    return [pack_nibbles(c).to(device) for c in codes], factors, generator


@cache
def require_int4(device: torch.device, dtype: torch.dtype, block_n: int, act_unsigned: bool) -> None:
    """Raise RuntimeError unless the native INT4 kernel that a call needs computes a known problem right on this device.

    Args:
        dtype: of the activations. block_n: columns of the tile, as native_int4_tile chooses it. act_unsigned: codes
            0...15.
    """
    from .step.gemm_w4a4_native import gemm_w4a4_native

    if device.type == "meta":
        return  # nothing is computed there
    M = next(rows for rows in (FEW, MANY) if native_int4_tile(rows, N, K // GROUP_SIZE_INT4)["BLOCK_N"] == block_n)
    (qx, qweight), (x_down, proj_up), generator = _draw(M, dtype, device)
    ascales, wscales = (torch.rand(K // GROUP_SIZE_INT4, n, generator=generator).to(device, dtype) for n in (M, N))
    bias = torch.randn(N, generator=generator).to(device, dtype)  # as layers have one: another kernel without
    operands, options = (qx, ascales, qweight, wscales), {"x_down": x_down, "proj_up": proj_up, "bias": bias}
    actual = gemm_w4a4_native(*operands, **options, act_unsigned=act_unsigned)
    expected = reference.gemm_w4a4(*operands, **options, act_unsigned=act_unsigned)
    _require_close(actual, expected, "the native INT4 kernel")


@cache
def require_fp4(device: torch.device, dtype: torch.dtype) -> None:
    """Raise RuntimeError unless the native FP4 kernel computes a known problem right on this device.

    Args:
        dtype: of the activations.
    """
    from .step.gemm_nvfp4 import gemm_nvfp4

    if device.type == "meta":
        return
    M = MANY
    (qx, qweight), (x_down, proj_up), generator = _draw(M, dtype, device)
    scales = [torch.rand(K // 16, rows, generator=generator) * 4 for rows in (M, N)]
    ascales, wscales = (s.to(torch.float8_e4m3fn).to(device) for s in scales)
    bias = torch.randn(N, generator=generator).to(device, dtype)
    operands, branch = (qx, ascales, qweight, wscales), {"x_down": x_down, "proj_up": proj_up, "bias": bias}
    actual, expected = gemm_nvfp4(*operands, **branch), reference.gemm_nvfp4(*operands, **branch)
    _require_close(actual, expected, "the native FP4 kernel")
