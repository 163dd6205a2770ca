"""One quantized layer part, from activation to output: picks the operations for a compute mode.

Compute modes: w4a4 is the paper, code for code (NVFP4 files: FP4 codes on both sides); w4a8 quantizes activations to int8
per token and brings the 4-bit weights to one scale for each output channel; w4a16 leaves activations alone.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from . import reference

COMPUTE_MODES = ("w4a4", "w4a8", "w4a16")


def choose_compute(scheme: str, device: torch.device) -> tuple[str, str]:
    """The mode that `auto` means for a layer scheme on a device, and the reason in words for the user."""
    return "w4a4", f"{device.type} runs the {scheme} codes exactly, in plain torch"


def svdquant_linear(
    x: Tensor,
    tensors: Mapping[str, Tensor],
    scheme: str,
    compute: str,
    bias: Tensor | None = None,
    lora_down: Tensor | None = None,
    lora_up: Tensor | None = None,
    act_unsigned: bool = False,
    gelu: bool = False,
) -> Tensor:
    """An int4 or nvfp4 SVDQuant part applied to activations.

    Args:
        x: (M, K) float32, bfloat16 or float16.
        tensors: the tensors of format.py: qweight, wscales, smooth_factor, proj_down, proj_up and, for nvfp4, wtscale, wcscales.
        scheme: "int4" or "nvfp4".
        compute: one of COMPUTE_MODES.
        bias: (N,) or None.
        lora_down, lora_up: (K, r) and (N, r), strength included, or None; they ride in the low-rank branch.
        act_unsigned: the stored bias expects the GELU shift; int4 activation codes are 0...15.
        gelu: apply GELU (tanh) to x first.

    Returns:
        (M, N) of x.dtype.
    """
    proj_down, proj_up = tensors["proj_down"], tensors["proj_up"]
    if lora_down is not None and lora_up is not None:
        proj_down = torch.cat((proj_down.to(lora_down.dtype), lora_down), dim=1)
        proj_up = torch.cat((proj_up.to(lora_up.dtype), lora_up), dim=1)
    smooth_factor = tensors["smooth_factor"]
    if scheme == "nvfp4" and compute == "w4a4":
        quantized = reference.quantize_act_nvfp4(x, smooth_factor, proj_down, gelu)
        qx, ascales, x_down = quantized
        scales = tensors["wscales"], x_down, proj_up, bias, tensors.get("wtscale"), tensors.get("wcscales")
        return reference.gemm_nvfp4(qx, ascales, tensors["qweight"], *scales)
    if compute == "w4a4":
        qx, ascales, x_down = reference.quantize_act_int4(x, smooth_factor, proj_down, act_unsigned, gelu)
        weight = tensors["qweight"], tensors["wscales"]
        return reference.gemm_w4a4(qx, ascales, *weight, x_down, proj_up, bias, act_unsigned)
    weight = dequantize(tensors, scheme)
    if compute == "w4a8":
        qx, ascales, x_down = reference.quantize_act_int8(x, smooth_factor, proj_down, act_unsigned, gelu)
        return reference.gemm_w4a8(qx, ascales, *reference.requantize_int8(weight), x_down, proj_up, bias)
    if compute == "w4a16":
        return reference.gemm_w4a16(x, smooth_factor, weight, proj_down, proj_up, bias, act_unsigned, gelu)
    raise ValueError(f"compute mode {compute!r}: expected one of {', '.join(COMPUTE_MODES)}.")


def awq_linear(
    x: Tensor,
    tensors: Mapping[str, Tensor],
    bias: Tensor | None = None,
    lora_down: Tensor | None = None,
    lora_up: Tensor | None = None,
) -> Tensor:
    """An AWQ W4A16 part (modulation) applied to activations: (M, K) -> (M, N) of x.dtype.

    Args:
        tensors: qweight, wscales, wzeros as in format.py.
        bias: (N,) or None. lora_down, lora_up: (K, r) and (N, r) or None.
    """
    out = reference.gemm_awq(x, tensors["qweight"], tensors["wscales"], tensors["wzeros"], bias)
    if lora_down is not None and lora_up is not None:
        out = out + ((x.float() @ lora_down.float()) @ lora_up.float().T).to(out.dtype)
    return out


def dequantize(tensors: Mapping[str, Tensor], scheme: str) -> Tensor:
    """The weight of one part in float32, (N, K); for int4 and nvfp4 the residual in smoothed coordinates."""
    if scheme == "int4":
        return reference.dequantize_int4(tensors["qweight"], tensors["wscales"])
    if scheme == "nvfp4":
        extra = tensors.get("wtscale"), tensors.get("wcscales")
        return reference.dequantize_nvfp4(tensors["qweight"], tensors["wscales"], *extra)
    return reference.dequantize_awq(tensors["qweight"], tensors["wscales"], tensors["wzeros"])
