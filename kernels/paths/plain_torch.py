"""Layers on a GPU in plain torch: the path below the Triton kernels.

Weights and activations become 16-bit (or float32) values with the low-rank factors behind them, so that one matrix
product computes a layer with its low-rank branch; int8 codes go through torch._int_mm where it takes them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..epilogue import settle
from ..format import GROUP_SIZE_INT4, GROUP_SIZE_NVFP4
from ..layer_call import LayerCall
from ..packing import unpack_int4, unpack_uint4
from ..part_weights import dequantize, rows_of
from .on_cpu import int8_weight
from .path import Path

ROWS = 2048  # of a weight that are dequantized at a time


class PlainTorch(Path):
    name = "plain torch"

    def why_not_here(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return "on the CPU the reference is as fast" if device.type == "cpu" else None

    def run(self, call: LayerCall) -> Tensor:
        return settle(compute(call), call.epilogue)


def compute(call: LayerCall) -> Tensor:
    """The call's result before its epilogue."""
    if call.scheme == "awq":
        return _awq(call)
    if call.mode == "w4a16":
        return _w4a16(call)
    return _w4a4(call) if call.label == "w4a4" else _w8a8(call)


def _float_codes(codes: Tensor, scales: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    rows, columns = codes.shape
    values = codes.float().view(rows, -1, group_size) * scales.float().T[..., None]
    return values.view(rows, columns).to(dtype)


def _with_branch(call: LayerCall, x_hat: Tensor, x_down: Tensor) -> Tensor:
    """x_hat @ weight.T + x_down @ proj_up.T + bias as one product."""
    dtype, weight = x_hat.dtype, dequantize(call.tensors, call.scheme)
    wide = torch.cat((weight.to(dtype), call.branch.up.to(dtype)), dim=1)
    return F.linear(torch.cat((x_hat, x_down), dim=1), wide, None if call.bias is None else call.bias.to(dtype))


def _w4a4(call: LayerCall) -> Tensor:
    """Exact 4-bit activation codes, multiplied in the dtype of x."""
    operands = call.x, call.tensors["smooth_factor"], call.branch.down
    if call.scheme == "nvfp4":
        codes, ascales, x_down = reference.quantize_act_nvfp4(*operands, call.gelu)
        unpacked, group_size = reference.decode_e2m1(unpack_uint4(codes)), GROUP_SIZE_NVFP4
    else:
        codes, ascales, x_down = reference.quantize_act_int4(*operands, call.act_unsigned, call.gelu)
        unpacked, group_size = unpack_uint4(codes) if call.act_unsigned else unpack_int4(codes), GROUP_SIZE_INT4
    return _with_branch(call, _float_codes(unpacked, ascales, group_size, call.x.dtype), x_down)


def _w8a8(call: LayerCall) -> Tensor:
    """Int8 on both sides."""
    proj_down, proj_up = call.branch
    quantized = reference.quantize_act_int8(
        call.x, call.tensors["smooth_factor"], proj_down, call.act_unsigned, call.gelu
    )
    weight = int8_weight(call)
    (M, K), N = quantized.codes.shape, weight.codes.shape[0]
    if call.x.device.type not in ("cuda", "cpu") or M <= 16 or K % 8 or N % 8:  # torch._int_mm does not take these
        return reference.gemm_w4a8(quantized, weight, proj_up, call.bias)
    out = torch._int_mm(quantized.codes, weight.codes.T).float() * quantized.ascales[:, None] * weight.channel_scales
    out += quantized.x_down.float() @ proj_up.float().T
    if call.bias is not None:
        out += call.bias.float()
    return out.to(call.x.dtype)


def _w4a16(call: LayerCall) -> Tensor:
    """Activations as they are. The weight is dequantized in blocks of rows, of which float32 copies stay small."""
    x = F.gelu(call.x.float(), approximate="tanh").to(call.x.dtype) if call.gelu else call.x
    x_hat = reference.smooth_act(x, call.tensors["smooth_factor"], call.act_unsigned)
    wide = torch.cat((x_hat, x @ call.branch.down.to(x.dtype)), dim=1)
    blocks = []
    for start in range(0, call.out_features, ROWS):
        rows = slice(start, min(start + ROWS, call.out_features))
        weight = dequantize(rows_of(call.tensors, call.scheme, rows), call.scheme).to(x.dtype)
        weight = torch.cat((weight, call.branch.up[rows].to(x.dtype)), dim=1)
        blocks.append(F.linear(wide, weight, None if call.bias is None else call.bias[rows].to(x.dtype)))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _awq(call: LayerCall) -> Tensor:
    x = call.x
    bias = None if call.bias is None else call.bias.to(x.dtype)
    out = F.linear(x, dequantize(call.tensors, "awq").to(x.dtype), bias)
    if call.factors is None:
        return out
    return out + ((x.float() @ call.factors.down.float()) @ call.factors.up.float().T).to(out.dtype)
