"""One small problem through an instruction whose support rests on more than the compiler's word, at first use.

Native INT4 depends on a register order that Triton documents as unspecified, and native FP4 could not be run when this
was written. A wrong result here sends layers to the next step of the ladder instead of into an image.
"""

from functools import cache

import torch
from torch import Tensor

from . import reference
from .packing import pack_nibbles

SIZES = (128, 128, 256, 32)  # M, N, K, R: whole tiles of every kernel, several stages
TOLERANCE = 1e-2  # of the largest value; wrong registers are off by the size of the values themselves


def _require_close(actual: Tensor, expected: Tensor, what: str) -> None:
    error = ((actual.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
    if not error <= TOLERANCE:
        raise RuntimeError(f"{what} gave wrong results in a self-check: relative error {error:.2g}")


def _factors(device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    M, N, _, R = SIZES
    shapes = (M, R), (N, R)
    down, up = (torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes)
    return down, up


def _codes(rows: int, device: torch.device, generator: torch.Generator) -> Tensor:
    codes = torch.randint(0, 16, (rows, SIZES[2]), generator=generator, dtype=torch.uint8)
    return pack_nibbles(codes).to(device)


@cache
def require_int4(device: torch.device) -> None:
    """Raise RuntimeError unless the native INT4 kernel computes a known problem right on this device."""
    from .step.gemm_w4a4_native import gemm_w4a4_native

    M, N, K, _ = SIZES
    generator = torch.Generator().manual_seed(0)
    x_down, proj_up = _factors(device, generator)
    qx, qweight = _codes(M, device, generator), _codes(N, device, generator)
    scales = [torch.rand(K // 64, rows, generator=generator).to(device, torch.bfloat16) for rows in (M, N)]
    for act_unsigned in (False, True):
        arguments = qx, scales[0], qweight, scales[1], x_down, proj_up, None, act_unsigned
        what = "the native INT4 kernel"
        _require_close(gemm_w4a4_native(*arguments), reference.gemm_w4a4(*arguments), what)


@cache
def require_fp4(device: torch.device) -> None:
    """Raise RuntimeError unless the native FP4 kernel computes a known problem right on this device."""
    from .step.gemm_nvfp4 import gemm_nvfp4

    M, N, K, _ = SIZES
    generator = torch.Generator().manual_seed(0)
    x_down, proj_up = _factors(device, generator)
    qx, qweight = _codes(M, device, generator), _codes(N, device, generator)
    scales = [
        (torch.rand(K // 16, rows, generator=generator) * 4).to(torch.float8_e4m3fn).to(device) for rows in (M, N)
    ]
    arguments = qx, scales[0], qweight, scales[1], x_down, proj_up
    _require_close(gemm_nvfp4(*arguments), reference.gemm_nvfp4(*arguments), "the native FP4 kernel")
