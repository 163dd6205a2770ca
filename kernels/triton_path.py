"""Quantized layers through the Triton kernels: which of them, for a compute mode on a GPU generation.

Imported only where Triton is installed. Every function returns the steps of the ladder that Triton offers, best first.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .epilogue import Epilogue
from .gpus import FP4_GENERATIONS, INT4_GENERATIONS, generation
from .step.gemm_nvfp4 import gemm_nvfp4
from .step.gemm_w4a4 import gemm_w4a4
from .step.gemm_w4a8 import gemm_w4a8
from .step.gemv_w4a16 import MAX_ROWS, gemv_w4a16
from .step.quantize_act import quantize_act
from .step.quantize_act_int8 import quantize_act_int8, quantize_with_weight
from .step.requantize_weight import requantize_weight
from .step.unpack_weight import dequantize_weight, expand_codes
from .tiles import HOPPER_PART_N, INT8_W4A4_GENERATIONS, NATIVE_INT4_ROWS, fills_hopper

Steps = list[tuple[str, Callable[[], Tensor]]]


def _extra(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    return {name: tensors.get(name) for name in ("wtscale", "wcscales")}


def _in_16_bits(
    x: Tensor,
    tensors: Mapping[str, Tensor],
    scheme: str,
    act_scheme: str,
    bias: Tensor | None,
    act_unsigned: bool,
    gelu: bool,
) -> Tensor:
    """Both sides as 16-bit values with the low-rank factors behind them: one matrix product is the whole layer."""
    x_hat, _, _ = quantize_act(
        x, tensors["smooth_factor"], tensors["proj_down"], act_scheme, "float", act_unsigned, gelu
    )
    weight = dequantize_weight(
        tensors["qweight"], tensors["wscales"], scheme, x.dtype, tensors["proj_up"], **_extra(tensors)
    )
    return _product(x_hat, weight, bias)


def _project_down(x: Tensor, proj_down: Tensor) -> Tensor:
    out = torch.empty((x.shape[0], proj_down.shape[1]), dtype=x.dtype, device=x.device)
    return torch.mm(x.detach(), proj_down.detach().to(x.dtype), out=out)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias. Here as above with `out`, so that recording.py can note it, and therefore detached."""
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    if bias is None:
        return torch.mm(x.detach(), weight.T, out=out)
    return torch.addmm(bias.detach().to(x.dtype), x.detach(), weight.T, out=out)


def steps_w4a4(
    x: Tensor,
    tensors: Mapping[str, Tensor],
    scheme: str,
    bias: Tensor | None,
    act_unsigned: bool,
    gelu: bool,
) -> Steps:
    """Exact 4-bit codes on both sides."""
    smooth_factor, proj_down, proj_up = tensors["smooth_factor"], tensors["proj_down"], tensors["proj_up"]
    qweight, wscales = tensors["qweight"], tensors["wscales"]
    gpu = generation(x.device)

    def native_int4() -> Tensor:
        from .self_check import require_int4
        from .step.gemm_w4a4_native import gemm_w4a4_native

        require_int4(x.device)
        qx, ascales, x_down = quantize_act(
            x, smooth_factor, proj_down, "int4", "packed", act_unsigned, gelu, pad_rows=NATIVE_INT4_ROWS
        )
        return gemm_w4a4_native(qx, ascales, qweight, wscales, x_down, proj_up, bias, act_unsigned)

    def int8() -> Tensor:
        qx, ascales, x_down = quantize_act(x, smooth_factor, proj_down, "int4", "int8", act_unsigned, gelu)
        return gemm_w4a4(qx, ascales, expand_codes(qweight), wscales, x_down, proj_up, bias)

    def native_fp4() -> Tensor:
        from .self_check import require_fp4

        require_fp4(x.device)
        qx, ascales, x_down = quantize_act(x, smooth_factor, proj_down, "nvfp4", "packed", False, gelu)
        return gemm_nvfp4(qx, ascales, qweight, wscales, x_down, proj_up, bias, **_extra(tensors))

    steps: Steps = []
    if scheme == "int4" and gpu in INT4_GENERATIONS and qweight.shape[0] % 64 == 0 and wscales.dtype != torch.float32:
        steps.append(("w4a4 on INT4 tensor cores", native_int4))
    if scheme == "int4" and gpu in INT8_W4A4_GENERATIONS:
        steps.append(("w4a4 on int8 tensor cores", int8))
    if scheme == "nvfp4" and gpu in FP4_GENERATIONS:
        steps.append(("w4a4 on FP4 tensor cores", native_fp4))
    steps.append(
        ("w4a4 on 16-bit tensor cores", lambda: _in_16_bits(x, tensors, scheme, scheme, bias, act_unsigned, gelu))
    )
    return steps


def channel_scales(tensors: Mapping[str, Tensor], scheme: str) -> Tensor:
    """What requantize_weight finds by itself: (N,) float32."""
    return requantize_weight(tensors["qweight"], tensors["wscales"], scheme, **_extra(tensors))[1]


def steps_w4a8(
    x: Tensor,
    tensors: Mapping[str, Tensor],
    scheme: str,
    bias: Tensor | None,
    act_unsigned: bool,
    gelu: bool,
    epilogue: Epilogue,
) -> Steps:
    """Int8 activations per token, weights brought to int8 per channel; those of an int8 layer are."""
    proj_up, mode = tensors["proj_up"], "w8a8" if scheme == "int8" else "w4a8"

    def with_gemm(gemm: Callable[..., Tensor]) -> Tensor:
        operands = x, tensors["smooth_factor"], tensors["proj_down"], act_unsigned, gelu
        if scheme == "int8":
            qx, ascales, x_down = quantize_act_int8(*operands)
            weight = tensors["qweight"], tensors["wscales"]
        else:
            packed = {name: tensors.get(name) for name in ("qweight", "wscales", "channel_scales")}
            qx, ascales, x_down, *weight = quantize_with_weight(
                *operands, {**packed, "scheme": scheme, **_extra(tensors)}
            )
        return gemm(qx, ascales, *weight, x_down, proj_up, bias, *epilogue)

    def hopper() -> Tensor:
        from .step.gemm_w4a8_hopper import gemm_w4a8_hopper

        return with_gemm(gemm_w4a8_hopper)

    steps: Steps = [(f"{mode} on int8 tensor cores", lambda: with_gemm(gemm_w4a8))]
    N, R = proj_up.shape
    out = epilogue.out
    starts_whole = (epilogue.gelu_from or 0) % HOPPER_PART_N == 0
    whole_rows = N % 8 == 0 and R % 8 == 0 and (out is None or (out.data_ptr() | 2 * out.stride(0)) % 16 == 0)
    if generation(x.device) == "sm_90" and fills_hopper(x.shape[0], N) and whole_rows and starts_whole:
        steps.insert(0, (f"{mode} on Hopper's asynchronous tensor cores", hopper))
    return steps


def steps_w4a16(
    x: Tensor,
    tensors: Mapping[str, Tensor],
    scheme: str,
    bias: Tensor | None,
    act_unsigned: bool,
    gelu: bool,
) -> Steps:
    """Activations in 16 bits; int8 weights have no kernel of their own for it."""
    if scheme == "int8":
        return []

    def few_rows() -> Tensor:
        wide = F.gelu(x.float(), approximate="tanh").to(x.dtype) if gelu else x
        branch = {}
        if tensors["proj_down"].shape[1]:
            branch = {"x_down": _project_down(wide, tensors["proj_down"]), "proj_up": tensors["proj_up"]}
        return gemv_w4a16(
            wide,
            tensors["qweight"],
            tensors["wscales"],
            scheme,
            bias,
            smooth_factor=tensors["smooth_factor"],
            act_unsigned=act_unsigned,
            **branch,
            **_extra(tensors),
        )

    steps: Steps = []
    if x.shape[0] <= MAX_ROWS:
        steps.append(("w4a16 for a few tokens", few_rows))
    steps.append(
        ("w4a16 on 16-bit tensor cores", lambda: _in_16_bits(x, tensors, scheme, "none", bias, act_unsigned, gelu))
    )
    return steps


def steps_awq(
    x: Tensor, tensors: Mapping[str, Tensor], bias: Tensor | None, lora_down: Tensor | None, lora_up: Tensor | None
) -> Steps:
    """AWQ weights, activations in 16 bits; LoRAs are their only low-rank branch."""
    qweight, wscales, wzeros = tensors["qweight"], tensors["wscales"], tensors["wzeros"]

    def branch() -> dict[str, Tensor]:
        if lora_down is None or lora_up is None:
            return {}
        return {"x_down": _project_down(x, lora_down), "proj_up": lora_up.contiguous()}

    def few_rows() -> Tensor:
        return gemv_w4a16(x, qweight, wscales, "awq", bias, wzeros, **branch())

    def many_rows() -> Tensor:
        out = _product(x, dequantize_weight(qweight, wscales, "awq", x.dtype, wzeros=wzeros), bias)
        factors = branch()
        if factors:
            torch.addmm(out, factors["x_down"], factors["proj_up"].detach().to(x.dtype).T, out=out)
        return out

    steps: Steps = [("awq on 16-bit tensor cores", many_rows)]
    if x.shape[0] <= MAX_ROWS:
        steps.insert(0, ("awq for a few tokens", few_rows))
    return steps
