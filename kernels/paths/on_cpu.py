"""The CPU's path: the reference, code for code."""

import torch
from torch import Tensor

from .. import reference
from ..epilogue import settle
from ..layer_call import Int8Weight, LayerCall
from ..weights import dequantize
from .path import Path


class Reference(Path):
    name = "the reference"

    def why_not_here(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if device.type == "cpu" else "it is for the CPU"

    def run(self, call: LayerCall) -> Tensor:
        return settle(compute(call), call.epilogue)


def compute(call: LayerCall) -> Tensor:
    """The call's result before its epilogue, in plain torch on any device; the oracle of the other paths."""
    x, tensors, bias = call.x, call.tensors, call.bias
    if call.scheme == "awq":
        out = reference.gemm_awq(x, tensors["qweight"], tensors["wscales"], tensors["wzeros"], bias)
        if call.factors is None:
            return out
        return out + ((x.float() @ call.factors.down.float()) @ call.factors.up.float().T).to(out.dtype)
    proj_down, proj_up = call.branch
    activations = x, tensors["smooth_factor"], proj_down
    if call.label == "w4a4" and call.scheme == "nvfp4":
        qx, ascales, x_down = reference.quantize_act_nvfp4(*activations, call.gelu)
        extra = tensors.get("wtscale"), tensors.get("wcscales")
        return reference.gemm_nvfp4(qx, ascales, tensors["qweight"], tensors["wscales"], x_down, proj_up, bias, *extra)
    if call.label == "w4a4":
        qx, ascales, x_down = reference.quantize_act_int4(*activations, call.act_unsigned, call.gelu)
        weight = tensors["qweight"], tensors["wscales"]
        return reference.gemm_w4a4(qx, ascales, *weight, x_down, proj_up, bias, call.act_unsigned)
    if call.mode == "w4a16":
        weight = dequantize(tensors, call.scheme)
        operands = weight, proj_down, proj_up, bias, call.act_unsigned, call.gelu
        return reference.gemm_w4a16(*activations[:2], *operands)
    quantized = reference.quantize_act_int8(*activations, call.act_unsigned, call.gelu)
    return reference.gemm_w4a8(quantized, int8_weight(call), proj_up, bias)


def int8_weight(call: LayerCall) -> Int8Weight:
    """The weight of a call in int8 with one scale for each output channel, which those of an int8 layer are."""
    if call.scheme == "int8":
        return Int8Weight(call.tensors["qweight"], call.tensors["wscales"])
    return reference.requantize_int8(dequantize(call.tensors, call.scheme))
