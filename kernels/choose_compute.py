"""What compute mode `auto` means on a device, and why, in words for the user."""

import torch

from .gpus import Generation, generation, why_no_triton
from .paths.layer_paths import why_not_native


def choose_compute(scheme: str, device: torch.device) -> tuple[str, str]:
    """The mode that `auto` means for a layer scheme on a device, and the reason in words.

    It is the fastest mode that is at least as accurate as w4a4 on that device.
    """
    if scheme == "int8":
        return "w4a8", "8-bit weights run with 8-bit activations: W8A8"
    if device.type == "cpu":
        return "w4a4", f"the CPU runs the {scheme} codes exactly, in plain torch"
    problem = why_no_triton(device)
    if problem:
        return "w4a16", f"{problem}, so weights are dequantized and multiplied in plain torch"
    return choose_on(scheme, generation(device))


def choose_on(scheme: str, gpu: Generation) -> tuple[str, str]:
    """choose_compute for 4-bit weights on a generation of GPUs for which Triton compiles."""
    native, why_not = why_not_native(scheme, gpu)
    if why_not is None:
        return "w4a4", f"{gpu.name} has {native} for both sides"
    reason = f"why not {native}: {why_not}"
    if gpu.slow_int8 is None:
        return "w4a8", f"{reason}; int8 activations are as fast and more accurate than w4a4"
    return "w4a16", f"{reason}; why not int8 tensor cores: {gpu.slow_int8}"
