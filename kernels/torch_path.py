"""Quantized layers on a GPU in plain torch: the step of the ladder below the Triton kernels.

Weights and activations become 16-bit (or float32) values with the low-rank factors behind them, so that one matrix
product computes a layer with its low-rank branch; int8 codes go through torch._int_mm where it takes them. Every
function takes what reference.py takes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .format import GROUP_SIZE_INT4, GROUP_SIZE_NVFP4
from .packing import unpack_int4, unpack_uint4


def _float_codes(codes: Tensor, scales: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    rows, columns = codes.shape
    values = codes.float().view(rows, -1, group_size) * scales.float().T[..., None]
    return values.view(rows, columns).to(dtype)


def _linear_with_branch(x_hat: Tensor, x_down: Tensor, weight: Tensor, proj_up: Tensor, bias: Tensor | None) -> Tensor:
    dtype = x_hat.dtype
    factors = torch.cat((x_hat, x_down), dim=1), torch.cat((weight.to(dtype), proj_up.to(dtype)), dim=1)
    return F.linear(*factors, None if bias is None else bias.to(dtype))


def linear_w4a4(
    x: Tensor,
    weight: Tensor,
    scheme: str,
    smooth_factor: Tensor,
    proj_down: Tensor,
    proj_up: Tensor,
    bias: Tensor | None,
    act_unsigned: bool,
    gelu: bool,
) -> Tensor:
    """Exact 4-bit activation codes, multiplied in the dtype of x; weight (N, K) float32, dequantized."""
    if scheme == "nvfp4":
        codes, ascales, x_down = reference.quantize_act_nvfp4(x, smooth_factor, proj_down, gelu)
        x_hat = _float_codes(reference.decode_e2m1(unpack_uint4(codes)), ascales, GROUP_SIZE_NVFP4, x.dtype)
    else:
        codes, ascales, x_down = reference.quantize_act_int4(x, smooth_factor, proj_down, act_unsigned, gelu)
        unpacked = unpack_uint4(codes) if act_unsigned else unpack_int4(codes)
        x_hat = _float_codes(unpacked, ascales, GROUP_SIZE_INT4, x.dtype)
    return _linear_with_branch(x_hat, x_down, weight, proj_up, bias)


def linear_w4a8(
    x: Tensor,
    weight: Tensor,
    smooth_factor: Tensor,
    proj_down: Tensor,
    proj_up: Tensor,
    bias: Tensor | None,
    act_unsigned: bool,
    gelu: bool,
) -> Tensor:
    """Int8 on both sides; weight (N, K) float32, dequantized."""
    operands = smooth_factor, proj_down, proj_up, bias, act_unsigned, gelu
    return linear_w8a8(x, *reference.requantize_int8(weight), *operands)


def linear_w8a8(
    x: Tensor,
    codes: Tensor,
    channel_scales: Tensor,
    smooth_factor: Tensor,
    proj_down: Tensor,
    proj_up: Tensor,
    bias: Tensor | None,
    act_unsigned: bool,
    gelu: bool,
) -> Tensor:
    """Int8 on both sides; codes (N, K) int8, channel_scales (N,) float32."""
    qx, ascales, x_down = reference.quantize_act_int8(x, smooth_factor, proj_down, act_unsigned, gelu)
    (M, K), N = qx.shape, codes.shape[0]
    if x.device.type not in ("cuda", "cpu") or M <= 16 or K % 8 or N % 8:  # torch._int_mm does not take these
        return reference.gemm_w4a8(qx, ascales, codes, channel_scales, x_down, proj_up, bias)
    out = torch._int_mm(qx, codes.T).float() * ascales[:, None] * channel_scales
    out += x_down.float() @ proj_up.float().T
    if bias is not None:
        out += bias.float()
    return out.to(x.dtype)


def linear_w4a16(
    x: Tensor,
    weight: Tensor,
    smooth_factor: Tensor,
    proj_down: Tensor,
    proj_up: Tensor,
    bias: Tensor | None,
    act_unsigned: bool,
    gelu: bool,
) -> Tensor:
    """Activations as they are; weight (N, K) float32, dequantized."""
    if gelu:
        x = F.gelu(x.float(), approximate="tanh").to(x.dtype)
    x_down = x @ proj_down.to(x.dtype)
    x_hat = reference.smooth_act(x, smooth_factor, act_unsigned)
    return _linear_with_branch(x_hat, x_down, weight, proj_up, bias)


def linear_awq(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight (N, K) float32, dequantized."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
