"""The CPU's path: the reference, code for code."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..epilogue import settle
from ..layer_call import Int8Weight, LayerCall, QuantizedAct
from ..part_weights import dequantize
from .path import Path, outer_scales


class Reference(Path):
    name = "the reference"

    def why_not_here(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if device.type == "cpu" else "it is for the CPU"

    def run(self, call: LayerCall) -> Tensor:
        return settle(compute(call), call.epilogue)

    def makes(self, call: LayerCall) -> str | None:
        return None if call.mode == "w4a16" else f"the reference's {call.scheme} {call.label}"

    def quantize(self, call: LayerCall) -> tuple[Tensor, ...]:
        return tuple(quantize(call))

    def multiply(self, call: LayerCall, quantized: tuple[Tensor, ...]) -> Tensor:
        return settle(multiply(call, quantized), call.epilogue)


def compute(call: LayerCall) -> Tensor:
    """The call's result before its epilogue, in plain torch on any device; the oracle of the other paths."""
    x, tensors, bias = call.x, call.tensors, call.bias
    if call.scheme == "awq":
        out = reference.gemm_awq(x, tensors["qweight"], tensors["wscales"], tensors["wzeros"], bias)
        if call.factors is None:
            return out
        return out + ((x.float() @ call.factors.down.float()) @ call.factors.up.float().T).to(out.dtype)
    if call.mode == "w4a16":
        down, up = call.branch
        weight, options = dequantize(tensors, call.scheme), {"act_unsigned": call.act_unsigned, "gelu": call.gelu}
        return reference.gemm_w4a16(
            x, tensors["smooth_factor"], weight, proj_down=down, proj_up=up, bias=bias, **options
        )
    return multiply(call, quantize(call))


def quantize(call: LayerCall) -> Sequence[Tensor]:
    """Codes, their scales and x_down of a call that quantizes its activations."""
    operands = call.x, call.tensors["smooth_factor"], call.branch.down
    if call.label != "w4a4":
        return reference.quantize_act_int8(*operands, call.act_unsigned, call.gelu)
    if call.scheme == "nvfp4":
        return reference.quantize_act_nvfp4(*operands, call.gelu)
    return reference.quantize_act_int4(*operands, call.act_unsigned, call.gelu)


def multiply(call: LayerCall, quantized: Sequence[Tensor]) -> Tensor:
    """The call's result before its epilogue, of what `quantize` made."""
    tensors, up, bias = call.tensors, call.branch.up, call.bias
    qx, ascales, x_down = quantized
    if call.label != "w4a4":
        return reference.gemm_w4a8(QuantizedAct(qx, ascales, x_down), int8_weight(call), up, bias)
    operands = qx, ascales, tensors["qweight"], tensors["wscales"]
    if call.scheme == "nvfp4":
        return reference.gemm_nvfp4(*operands, x_down=x_down, proj_up=up, bias=bias, **outer_scales(call))
    return reference.gemm_w4a4(*operands, x_down=x_down, proj_up=up, bias=bias, act_unsigned=call.act_unsigned)


def int8_weight(call: LayerCall) -> Int8Weight:
    """The weight of a call in int8 with one scale for each output channel, which those of an int8 layer are."""
    if call.scheme == "int8":
        return Int8Weight(call.tensors["qweight"], call.tensors["wscales"])
    return reference.requantize_int8(dequantize(call.tensors, call.scheme))
