"""One quantized layer part, from activation to output: picks the operations for a compute mode.

Compute modes: w4a4 is the paper, code for code (NVFP4 files: FP4 codes on both sides); w4a8 quantizes activations to
int8 per token and brings the 4-bit weights to one scale for each output channel; w4a16 leaves activations alone. Int8
layers have one scale for each output channel already: w4a4 and w4a8 both mean w8a8 for them.

A layer runs on the first step of a ladder that works: Triton kernels, torch on the GPU, the reference on the CPU. To
torch.compile each layer is one opaque operation, svdquant::linear. Modulation layers: linear_awq.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from . import reference, torch_path
from .epilogue import NOTHING_MORE, Epilogue, settle
from .format import RANK_MULTIPLE
from .gpus import FP4_GENERATIONS, INT4_GENERATIONS, generation, why_no_triton
from .ladder import climb, say_once

COMPUTE_MODES = ("w4a4", "w4a8", "w4a16")


def choose_compute(scheme: str, device: torch.device) -> tuple[str, str]:
    """The mode that `auto` means for a layer scheme on a device, and the reason in words for the user.

    It is the fastest mode that is at least as accurate as w4a4 on that device.
    """
    if scheme == "int8":
        return "w4a8", "8-bit weights run with 8-bit activations: W8A8"
    if device.type == "cpu":
        return "w4a4", f"the CPU runs the {scheme} codes exactly, in plain torch"
    problem = why_no_triton(device)
    if problem:
        return "w4a16", f"{problem}, so weights are dequantized and multiplied in plain torch"
    gpu = generation(device)
    if scheme == "int4" and gpu in INT4_GENERATIONS:
        return "w4a4", f"{gpu} has INT4 tensor cores for both sides"
    if scheme == "nvfp4" and gpu in FP4_GENERATIONS:
        return "w4a4", f"{gpu} has FP4 tensor cores for both sides"
    return (
        "w4a8",
        f"{gpu} has no {scheme.upper()} tensor cores; int8 activations are as fast and more accurate than w4a4",
    )


def _linear(
    x: Tensor,
    qweight: Tensor,
    wscales: Tensor,
    smooth_factor: Tensor,
    proj_down: Tensor,
    proj_up: Tensor,
    wtscale: Tensor | None,
    wcscales: Tensor | None,
    channel_scales: Tensor | None,
    bias: Tensor | None,
    scheme: str,
    compute: str,
    act_unsigned: bool,
    gelu: bool,
) -> Tensor:
    named = {
        "qweight": qweight,
        "wscales": wscales,
        "smooth_factor": smooth_factor,
        "proj_down": proj_down,
        "proj_up": proj_up,
        "wtscale": wtscale,
        "wcscales": wcscales,
        "channel_scales": channel_scales,
    }
    tensors = {name: tensor for name, tensor in named.items() if tensor is not None}
    return _run(x, tensors, scheme, compute, bias, act_unsigned, gelu, NOTHING_MORE)


def _run(x, tensors, scheme, compute, bias, act_unsigned, gelu, epilogue) -> Tensor:
    """The result of the first step that works."""
    if x.shape[0] == 0:
        return x.new_empty((0, tensors["qweight"].shape[0])) if epilogue.out is None else epilogue.out
    if x.device.type == "cpu":
        return settle(_reference_linear(x, tensors, scheme, compute, bias, act_unsigned, gelu), epilogue)
    steps = []
    problem = why_no_triton(x.device)
    if problem is None and x.dtype == torch.float32:
        problem = "float32 activations have no kernel"
    if problem:
        say_once("%s runs in plain torch: %s.", compute, problem)
    else:
        from . import triton_path

        operands = x, tensors, scheme, bias, act_unsigned, gelu
        mode = _mode(scheme, compute)
        if mode == "w4a8":
            steps = triton_path.steps_w4a8(*operands, epilogue)
        else:
            plain = triton_path.steps_w4a4(*operands) if mode == "w4a4" else triton_path.steps_w4a16(*operands)
            steps = [(name, lambda step=step: settle(step(), epilogue)) for name, step in plain]

    def in_torch() -> Tensor:
        return settle(_torch_linear(x, tensors, scheme, compute, bias, act_unsigned, gelu), epilogue)

    return climb(x.device, [*steps, (f"{compute} in plain torch", in_torch)])


def _mode(scheme: str, compute: str) -> str:
    """What a mode comes to: int8 weights need what w4a8 does after it has unpacked its own."""
    return "w4a8" if scheme == "int8" and compute == "w4a4" else compute


def _torch_linear(x, tensors, scheme, compute, bias, act_unsigned, gelu) -> Tensor:
    operands = tensors["smooth_factor"], tensors["proj_down"], tensors["proj_up"], bias, act_unsigned, gelu
    compute = _mode(scheme, compute)
    if scheme == "int8" and compute == "w4a8":
        return torch_path.linear_w8a8(x, tensors["qweight"], tensors["wscales"], *operands)
    weight = dequantize(tensors, scheme)
    if compute == "w4a4":
        return torch_path.linear_w4a4(x, weight, scheme, *operands)
    run = torch_path.linear_w4a8 if compute == "w4a8" else torch_path.linear_w4a16
    return run(x, weight, *operands)


def _reference_linear(x, tensors, scheme, compute, bias, act_unsigned, gelu) -> Tensor:
    smooth_factor, proj_down, proj_up = tensors["smooth_factor"], tensors["proj_down"], tensors["proj_up"]
    compute = _mode(scheme, compute)
    if scheme == "nvfp4" and compute == "w4a4":
        qx, ascales, x_down = reference.quantize_act_nvfp4(x, smooth_factor, proj_down, gelu)
        scales = tensors["wscales"], x_down, proj_up, bias, tensors.get("wtscale"), tensors.get("wcscales")
        return reference.gemm_nvfp4(qx, ascales, tensors["qweight"], *scales)
    if compute == "w4a4":
        qx, ascales, x_down = reference.quantize_act_int4(x, smooth_factor, proj_down, act_unsigned, gelu)
        weight = tensors["qweight"], tensors["wscales"]
        return reference.gemm_w4a4(qx, ascales, *weight, x_down, proj_up, bias, act_unsigned)
    if compute == "w4a8":
        qx, ascales, x_down = reference.quantize_act_int8(x, smooth_factor, proj_down, act_unsigned, gelu)
        if scheme == "int8":
            weight = tensors["qweight"], tensors["wscales"]
        else:
            weight = reference.requantize_int8(dequantize(tensors, scheme))
        return reference.gemm_w4a8(qx, ascales, *weight, x_down, proj_up, bias)
    weight = dequantize(tensors, scheme)
    return reference.gemm_w4a16(x, smooth_factor, weight, proj_down, proj_up, bias, act_unsigned, gelu)


# custom_op and not triton_op: Inductor then sees no kernel to compile a second time in its own harness, and
# descriptors, Gluon kernels and the ladder work under torch.compile as they do without it.
_linear_op = torch.library.custom_op("svdquant::linear", _linear, mutates_args=())


@_linear_op.register_fake
def _(x, qweight, *_others):
    return x.new_empty((x.shape[0], qweight.shape[0]))


def _append_factors(factors: Tensor, lora: Tensor) -> Tensor:
    """(A, R) and (A, r) -> (A, R + r), with columns of zeros up to a multiple of RANK_MULTIPLE."""
    padding = lora.new_zeros((lora.shape[0], -(factors.shape[1] + lora.shape[1]) % RANK_MULTIPLE))
    return torch.cat((factors.to(lora.dtype), lora, padding), dim=1)


def _join(proj_down: Tensor, lora_down: Tensor, proj_up: Tensor, lora_up: Tensor) -> tuple[Tensor, Tensor]:
    """Both factors of the layer with those of its LoRAs behind them."""

    def in_torch() -> tuple[Tensor, Tensor]:
        return _append_factors(proj_down, lora_down), _append_factors(proj_up, lora_up)

    if torch.compiler.is_compiling() or why_no_triton(proj_down.device):
        return in_torch()

    def in_kernel() -> tuple[Tensor, Tensor]:
        from .step.join_factors import join_factors

        return join_factors(proj_down, lora_down, proj_up, lora_up)

    steps = [("factors joined by a kernel", in_kernel), ("factors joined in plain torch", in_torch)]
    return climb(proj_down.device, steps)


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
    epilogue: Epilogue = NOTHING_MORE,
) -> Tensor:
    """An int4, nvfp4 or int8 SVDQuant part applied to activations.

    Args:
        x: (M, K) float32, bfloat16 or float16, unit stride along K; rows may be apart.
        tensors: the tensors of format.py: qweight, wscales, smooth_factor, proj_down, proj_up and, for nvfp4, wtscale,
        wcscales.
            Optional for w4a8: channel_scales from find_channel_scales, which saves a pass over the weight in every
            call.
        scheme: "int4", "nvfp4" or "int8".
        compute: one of COMPUTE_MODES.
        bias: (N,) or None.
        lora_down, lora_up: (K, r) and (N, r), strength included, or None; they ride in the low-rank branch.
        act_unsigned: the stored bias expects the GELU shift; int4 activation codes are 0...15.
        gelu: apply GELU (tanh) to x first.
        epilogue: what is done with the result; see Epilogue.

    Returns:
        (M, N) of x.dtype, the epilogue's `out` if given.

    Raises:
        ValueError: compute is none of COMPUTE_MODES.
    """
    if compute not in COMPUTE_MODES:
        raise ValueError(f"compute mode {compute!r}: expected one of {', '.join(COMPUTE_MODES)}.")
    proj_down, proj_up = tensors["proj_down"], tensors["proj_up"]
    if lora_down is not None and lora_up is not None:
        proj_down, proj_up = _join(proj_down, lora_down, proj_up, lora_up)
    x = x if x.stride(1) == 1 else x.contiguous()
    factors = {"proj_down": proj_down, "proj_up": proj_up}
    if torch.compiler.is_compiling():
        required = tensors["qweight"], tensors["wscales"], tensors["smooth_factor"], proj_down, proj_up
        optional = tensors.get("wtscale"), tensors.get("wcscales"), tensors.get("channel_scales"), bias
        return settle(_linear_op(x, *required, *optional, scheme, compute, act_unsigned, gelu), epilogue)
    # the dispatcher would only add time
    return _run(x, {**tensors, **factors}, scheme, compute, bias, act_unsigned, gelu, epilogue)


def dequantize(tensors: Mapping[str, Tensor], scheme: str) -> Tensor:
    """The weight of one part in float32, (N, K); except for awq the residual in smoothed coordinates."""
    if scheme == "int4":
        return reference.dequantize_int4(tensors["qweight"], tensors["wscales"])
    if scheme == "nvfp4":
        extra = tensors.get("wtscale"), tensors.get("wcscales")
        return reference.dequantize_nvfp4(tensors["qweight"], tensors["wscales"], *extra)
    if scheme == "int8":
        return reference.dequantize_int8(tensors["qweight"], tensors["wscales"])
    return reference.dequantize_awq(tensors["qweight"], tensors["wscales"], tensors["wzeros"])


def find_channel_scales(tensors: Mapping[str, Tensor], scheme: str) -> Tensor:
    """The int8 scale of each output channel that w4a8 needs, (N,) float32; may be kept with the layer's tensors.

    Args:
        tensors: qweight, wscales, wtscale, wcscales of format.py, as the scheme has them.
    """
    device, steps = tensors["qweight"].device, []
    if why_no_triton(device) is None:
        from . import triton_path

        steps.append(("int8 scales from a kernel", lambda: triton_path.channel_scales(tensors, scheme)))
    steps.append(("int8 scales in plain torch", lambda: reference.requantize_int8(dequantize(tensors, scheme))[1]))
    return climb(device, steps)
