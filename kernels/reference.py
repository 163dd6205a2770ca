"""Each operation in plain torch: the specification, the CPU path and the oracle of every test.

A layer computes, with x of shape (M, K):

    x_down  = x @ proj_down                                        raw x: before shift and smoothing
    x_hat   = (x [+ GELU_SHIFT]) / smooth_factor                   the shift only where act_unsigned
    out     = dequant(quant(x_hat)) @ dequant(qweight).T + x_down @ proj_up.T + bias

`act_unsigned` layers sit behind a GELU; with `gelu=True` the quantizer applies that GELU (tanh form) itself.
Rounding to the dtype of x happens exactly where a kernel holds a 16-bit value: after the GELU, after the shift, after
the smoothing, at the activation scales and at x_down. Sums are float32. Layouts: format.py.

Sources: SVDQuant, arXiv:2411.05007; the arithmetic of nunchaku's kernels, except that nunchaku also rounds the
accumulator to 16 bits after each group.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .epilogue import NOTHING_MORE, Epilogue, finish
from .format import (
    E2M1_MAX,
    E2M1_VALUES,
    E4M3_MAX,
    GELU_SHIFT,
    GROUP_SIZE_AWQ,
    GROUP_SIZE_INT4,
    GROUP_SIZE_NVFP4,
    INT4_MAX,
    INT8_MAX,
    UINT4_MAX,
)
from .layer_call import Int8Weight, QuantizedAct
from .packing import pack_nibbles, unpack_int4, unpack_uint4

# ---------------------------------------------------------------------------------------------------- weights


def decode_e2m1(codes: Tensor) -> Tensor:
    """E2M1 codes 0...15 (any integer dtype) -> float32 values."""
    table = torch.tensor(E2M1_VALUES + tuple(-v for v in E2M1_VALUES), dtype=torch.float32, device=codes.device)
    return table[codes.int()]


def encode_e2m1(values: Tensor) -> Tensor:
    """Round to the nearest E2M1 value, ties to the even code, saturating at 6: float (...) -> uint8 codes."""
    magnitude = values.abs().clamp(max=E2M1_MAX)
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    rounded = torch.round(magnitude / step) * step  # torch.round: ties to even, which is the even code in each binade
    thresholds = torch.tensor(E2M1_VALUES, dtype=torch.float32, device=values.device)
    codes = torch.bucketize(rounded, thresholds).to(torch.uint8)
    return codes | (torch.signbit(values).to(torch.uint8) << 3)


def _scale_groups(values: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """(N, K) float32 times (K//group_size, N) scales."""
    rows, columns = values.shape
    return (values.view(rows, -1, group_size) * scales.float().T[..., None]).view(rows, columns)


def dequantize_int4(qweight: Tensor, wscales: Tensor) -> Tensor:
    """Residual weight in smoothed coordinates: (N, K//2) int8 and (K//64, N) -> (N, K) float32."""
    return _scale_groups(unpack_int4(qweight).float(), wscales, GROUP_SIZE_INT4)


def dequantize_nvfp4(
    qweight: Tensor, wscales: Tensor, wtscale: Tensor | None = None, wcscales: Tensor | None = None
) -> Tensor:
    """Residual weight in smoothed coordinates: (N, K//2) int8 and (K//16, N) e4m3 -> (N, K) float32."""
    weight = _scale_groups(decode_e2m1(unpack_uint4(qweight)), wscales, GROUP_SIZE_NVFP4)
    if wtscale is None and wcscales is None:
        return weight
    factors = torch.ones(1, device=weight.device) if wcscales is None else wcscales.float()[:, None]
    return weight * (factors if wtscale is None else factors * wtscale.float())


def dequantize_awq(qweight: Tensor, wscales: Tensor, wzeros: Tensor) -> Tensor:
    """(N, K//2) int8, (K//64, N), (K//64, N) -> (N, K) float32; code * scale + zero."""
    weight = _scale_groups(unpack_uint4(qweight).float(), wscales, GROUP_SIZE_AWQ)
    return weight + wzeros.float().T.repeat_interleave(GROUP_SIZE_AWQ, dim=1)


def dequantize_int8(qweight: Tensor, wscales: Tensor) -> Tensor:
    """Residual weight in smoothed coordinates: (N, K) int8 and (N,) float32 -> (N, K) float32."""
    return qweight.float() * wscales.float()[:, None]


def requantize_int8(weight: Tensor) -> Int8Weight:
    """Symmetric int8 for each output channel: (N, K) float32 -> (N, K) int8 and (N,) float32.

    The scale is absmax / 127 of the row; a row of zeros gets scale 0.
    """
    channel_scales = weight.abs().amax(dim=1) * (1.0 / INT8_MAX)
    return Int8Weight(_round_to_codes(weight, channel_scales[:, None], -INT8_MAX, INT8_MAX), channel_scales)


# ---------------------------------------------------------------------------------------------- activations


def _round_to_codes(values: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    reciprocal = torch.where(scales > 0, 1.0 / scales, torch.zeros_like(scales))
    return torch.round(values * reciprocal).clamp(low, high).to(torch.int8)


def smooth_act(x: Tensor, smooth_factor: Tensor, act_unsigned: bool = False) -> Tensor:
    """(x [+ shift]) / smooth_factor, rounded to x.dtype after each step: (M, K) -> (M, K)."""
    if act_unsigned:
        x = x + GELU_SHIFT
    return (x.float() / smooth_factor.float()).to(x.dtype)


def _prepare(x: Tensor, smooth_factor: Tensor, proj_down: Tensor, act_unsigned: bool, gelu: bool):
    if gelu:
        x = F.gelu(x.float(), approximate="tanh").to(x.dtype)
    x_down = (x.float() @ proj_down.float()).to(x.dtype)
    return smooth_act(x, smooth_factor, act_unsigned), x_down


def quantize_act_int4(
    x: Tensor, smooth_factor: Tensor, proj_down: Tensor, act_unsigned: bool = False, gelu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize activations for gemm_w4a4 and compute the low-rank down projection.

    Codes come from the unrounded float32 scale absmax/7 (unsigned: max/15); the stored scale is rounded to x.dtype.
    A group of zeros gets scale 0 and codes 0.

    Args:
        x: (M, K) float32, bfloat16 or float16; K a multiple of 64.
        smooth_factor: (K,).
        proj_down: (K, R), R may be 0.
        act_unsigned: add the GELU shift and use codes 0...15 instead of -7...7.
        gelu: apply GELU (tanh) to x first.

    Returns:
        qx (M, K//2) int8, ascales (K//64, M) of x.dtype, x_down (M, R) of x.dtype.
    """
    x_hat, x_down = _prepare(x, smooth_factor, proj_down, act_unsigned, gelu)
    groups = x_hat.float().view(x.shape[0], -1, GROUP_SIZE_INT4)
    scales = groups.abs().amax(dim=-1) * (1.0 / (UINT4_MAX if act_unsigned else INT4_MAX))
    low, high = (0, UINT4_MAX) if act_unsigned else (-INT4_MAX, INT4_MAX)
    codes = _round_to_codes(groups, scales[..., None], low, high)
    return pack_nibbles(codes.view(x.shape)), scales.T.to(x.dtype).contiguous(), x_down


def quantize_act_int8(
    x: Tensor, smooth_factor: Tensor, proj_down: Tensor, act_unsigned: bool = False, gelu: bool = False
) -> QuantizedAct:
    """Quantize activations for gemm_w4a8: one scale absmax/127 for each token.

    Arguments as quantize_act_int4; act_unsigned only adds the shift that the stored bias expects.

    Returns:
        codes (M, K) int8 in -127...127, ascales (M,) float32, x_down (M, R) of x.dtype.
    """
    x_hat, x_down = _prepare(x, smooth_factor, proj_down, act_unsigned, gelu)
    scales = x_hat.float().abs().amax(dim=-1) * (1.0 / INT8_MAX)
    codes = _round_to_codes(x_hat.float(), scales[:, None], -INT8_MAX, INT8_MAX)
    return QuantizedAct(codes, scales, x_down)


def quantize_act_nvfp4(
    x: Tensor, smooth_factor: Tensor, proj_down: Tensor, gelu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize activations for gemm_nvfp4: E2M1 codes, one e4m3 scale for 16 consecutive k, no per-tensor scale.

    Codes come from the unrounded float32 scale min(absmax/6, 448). Arguments as quantize_act_int4.

    Returns:
        qx (M, K//2) int8, ascales (K//16, M) float8_e4m3fn, x_down (M, R) of x.dtype.
    """
    x_hat, x_down = _prepare(x, smooth_factor, proj_down, False, gelu)
    groups = x_hat.float().view(x.shape[0], -1, GROUP_SIZE_NVFP4)
    scales = (groups.abs().amax(dim=-1) * (1.0 / E2M1_MAX)).clamp(max=E4M3_MAX)
    reciprocal = torch.where(scales > 0, 1.0 / scales, torch.zeros_like(scales))
    codes = encode_e2m1(groups * reciprocal[..., None])
    return pack_nibbles(codes.view(x.shape)), scales.T.to(torch.float8_e4m3fn).contiguous(), x_down


# ----------------------------------------------------------------------------------------------------- GEMMs


def gemm_w4a4(
    qx: Tensor,
    ascales: Tensor,
    qweight: Tensor,
    wscales: Tensor,
    *,
    x_down: Tensor,
    proj_up: Tensor,
    bias: Tensor | None = None,
    act_unsigned: bool = False,
) -> Tensor:
    """Exact 4-bit GEMM with the low-rank up projection and the bias.

    Args:
        qx: (M, K//2) int8, ascales: (K//64, M), x_down: (M, R): from quantize_act_int4.
        qweight: (N, K//2) int8, wscales: (K//64, N), proj_up: (N, R), bias: (N,) or None.
        act_unsigned: qx holds codes 0...15.

    Returns:
        (M, N) of x_down.dtype.
    """
    codes = unpack_uint4(qx) if act_unsigned else unpack_int4(qx)
    x_hat = _scale_groups(codes.float(), ascales, GROUP_SIZE_INT4)
    return finish(x_hat @ dequantize_int4(qweight, wscales).T, x_down, proj_up, bias)


def _matmul_int8(a: Tensor, b: Tensor) -> Tensor:
    """Exact a @ b.T: (M, K) and (N, K) int8 -> (M, N) int32, on every device."""
    # 1024 products of at most 127 * 127 stay below 2^24, where float32 counts exactly
    total = torch.zeros((a.shape[0], b.shape[0]), dtype=torch.int32, device=a.device)
    for x, y in zip(a.split(1024, dim=1), b.split(1024, dim=1), strict=True):
        total += (x.float() @ y.float().T).int()
    return total


def gemm_w4a8(
    quantized: QuantizedAct,
    weight: Int8Weight,
    proj_up: Tensor,
    bias: Tensor | None = None,
    epilogue: Epilogue = NOTHING_MORE,
) -> Tensor:
    """8-bit activations times weights with one int8 scale for each output channel.

    Args:
        quantized: codes (M, K) int8, ascales (M,) float32, x_down (M, R): from quantize_act_int8.
        weight: codes (N, K) int8, channel_scales (N,) float32: qweight and wscales of an int8 layer, or
            requantize_int8(dequantize_...(...)).
        proj_up: (N, R), bias: (N,) or None. epilogue: as finish in epilogue.py.

    Returns:
        (M, N) of x_down.dtype.
    """
    (qx, ascales, x_down), (qweight_int8, channel_scales) = quantized, weight
    products = _matmul_int8(qx, qweight_int8).float() * ascales[:, None] * channel_scales
    return finish(products, x_down, proj_up, bias, epilogue)


def gemm_nvfp4(
    qx: Tensor,
    ascales: Tensor,
    qweight: Tensor,
    wscales: Tensor,
    *,
    x_down: Tensor,
    proj_up: Tensor,
    bias: Tensor | None = None,
    wtscale: Tensor | None = None,
    wcscales: Tensor | None = None,
) -> Tensor:
    """NVFP4 GEMM with the low-rank up projection and the bias.

    Args:
        qx: (M, K//2) int8, ascales: (K//16, M) e4m3, x_down: (M, R): from quantize_act_nvfp4.
        qweight: (N, K//2) int8, wscales: (K//16, N) e4m3, wtscale: (1,) or None, wcscales: (N,) or None.
        proj_up: (N, R), bias: (N,) or None.

    Returns:
        (M, N) of x_down.dtype.
    """
    x_hat = _scale_groups(decode_e2m1(unpack_uint4(qx)), ascales, GROUP_SIZE_NVFP4)
    weight = dequantize_nvfp4(qweight, wscales, wtscale, wcscales)
    return finish(x_hat @ weight.T, x_down, proj_up, bias)


def gemm_w4a16(
    x: Tensor,
    smooth_factor: Tensor,
    weight: Tensor,
    *,
    proj_down: Tensor,
    proj_up: Tensor,
    bias: Tensor | None = None,
    act_unsigned: bool = False,
    gelu: bool = False,
) -> Tensor:
    """4-bit weights, activations left in 16 bits.

    Args:
        x: (M, K). smooth_factor, proj_down, act_unsigned, gelu: as quantize_act_int4.
        weight: (N, K) float32, from dequantize_int4 or dequantize_nvfp4.
        proj_up: (N, R), bias: (N,) or None.

    Returns:
        (M, N) of x.dtype.
    """
    x_hat, x_down = _prepare(x, smooth_factor, proj_down, act_unsigned, gelu)
    return finish(x_hat.float() @ weight.T, x_down, proj_up, bias)


def gemm_awq(x: Tensor, qweight: Tensor, wscales: Tensor, wzeros: Tensor, bias: Tensor | None = None) -> Tensor:
    """AWQ W4A16 layer (modulation): x (M, K) -> (M, N) of x.dtype; weights as dequantize_awq, bias (N,) or None."""
    out = x.float() @ dequantize_awq(qweight, wscales, wzeros).T
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype)
