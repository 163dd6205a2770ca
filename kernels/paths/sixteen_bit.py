"""Paths through 16-bit values: activations left alone, or exact 4-bit codes where nothing multiplies those."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..epilogue import settle
from ..layer_call import LayerCall
from ..tiles import GEMV_ROWS
from .path import KernelPath, outer_scales


def _project_down(x: Tensor, proj_down: Tensor) -> Tensor:
    out = torch.empty((x.shape[0], proj_down.shape[1]), dtype=x.dtype, device=x.device)
    return torch.mm(x.detach(), proj_down.detach().to(x.dtype), out=out)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias. Here as above with `out`, so that recording.py can note it, and therefore detached."""
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    if bias is None:
        return torch.mm(x.detach(), weight.T, out=out)
    return torch.addmm(bias.detach().to(x.dtype), x.detach(), weight.T, out=out)


class FewTokens(KernelPath):
    """4-bit weights times a few rows of 16-bit activations."""

    name, serves = "a pass over the weight", frozenset({("int4", "w4a16"), ("nvfp4", "w4a16"), ("awq", "w4a16")})

    def why_not_for(self, call: LayerCall) -> str | None:
        return None if call.x.shape[0] <= GEMV_ROWS else f"{call.x.shape[0]} tokens are more than {GEMV_ROWS}"

    def run(self, call: LayerCall) -> Tensor:
        from ..step.gemv_w4a16 import gemv_w4a16

        x = F.gelu(call.x.float(), approximate="tanh").to(call.x.dtype) if call.gelu else call.x
        optional = {"bias": call.bias, "wzeros": call.tensors.get("wzeros"), **outer_scales(call)}
        if call.factors is not None and call.factors.down.shape[1]:
            optional |= {"x_down": _project_down(x, call.factors.down), "proj_up": call.factors.up.contiguous()}
        if call.scheme != "awq":
            optional |= {"smooth_factor": call.tensors["smooth_factor"], "act_unsigned": call.act_unsigned}
        out = gemv_w4a16(x, call.tensors["qweight"], call.tensors["wscales"], call.scheme, **optional)
        return settle(out, call.epilogue)


class SixteenBit(KernelPath):
    """Both sides as 16-bit values with the low-rank factors behind them: one matrix product is the whole layer."""

    name = "16-bit tensor cores"
    serves = frozenset((scheme, mode) for scheme in ("int4", "nvfp4") for mode in ("w4a4", "w4a16"))
    serves |= {("awq", "w4a16")}

    def makes(self, call: LayerCall) -> str | None:
        return None if call.scheme == "awq" else f"16-bit values of {self._codes(call)} codes, projection behind them"

    @staticmethod
    def _codes(call: LayerCall) -> str:
        return call.scheme if call.mode == "w4a4" else "none"

    def quantize(self, call: LayerCall) -> tuple[Tensor, ...]:
        from ..step.quantize_act import quantize_act

        if call.scheme == "awq":
            return (call.x,)
        operands = call.x, call.tensors["smooth_factor"], call.branch.down, self._codes(call)
        return quantize_act(*operands, output="float", act_unsigned=call.act_unsigned, gelu=call.gelu)[:1]

    def multiply(self, call: LayerCall, quantized: tuple[Tensor, ...]) -> Tensor:
        from ..step.unpack_weight import dequantize_weight

        (x,), packed = quantized, (call.tensors["qweight"], call.tensors["wscales"], call.scheme, call.x.dtype)
        if call.scheme != "awq":
            weight = dequantize_weight(*packed, proj_up=call.branch.up, **outer_scales(call))
            return settle(_product(x, weight, call.bias), call.epilogue)
        out = _product(x, dequantize_weight(*packed, wzeros=call.tensors["wzeros"]), call.bias)
        if call.factors is not None:
            x_down, up = _project_down(x, call.factors.down), call.factors.up.contiguous().detach().to(x.dtype)
            torch.addmm(out, x_down, up.T, out=out)
        return settle(out, call.epilogue)
