"""What a device is: the generation that the tables of tiles.py are keyed by, and whether Triton can compile for it."""

from functools import cache
from importlib.util import find_spec

import torch

# compute capability -> generation; within a generation the same instructions and nearly the same memory per block
NVIDIA_GENERATIONS = {
    (8, 0): "sm_80",
    (8, 6): "sm_86",
    (8, 7): "sm_80",
    (8, 9): "sm_89",
    (9, 0): "sm_90",
    (10, 0): "sm_100",
    (10, 3): "sm_100",
    (12, 0): "sm_120",
    (12, 1): "sm_120",
}
INT4_GENERATIONS = ("sm_80", "sm_86", "sm_89")  # the only tensor cores with native INT4
FP4_GENERATIONS = ("sm_100", "sm_120")  # the only tensor cores with native FP4


@cache
def _gpu_generation(index: int) -> str:
    if torch.version.hip:
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return name if name.startswith("gfx") else "other"
    capability = torch.cuda.get_device_capability(index)
    if capability < (8, 0):
        return "other"  # Triton does not compile for Turing and older
    return NVIDIA_GENERATIONS.get(capability, "sm_80" if capability[0] == 8 else "other")


def generation(device: torch.device) -> str:
    """ "sm_80" ... "sm_120", "gfx942" and the like, "cpu", or "other" for a GPU that no kernel here was made for."""
    if device.type == "cuda":
        return _gpu_generation(torch.cuda.current_device() if device.index is None else device.index)
    return "cpu" if device.type == "cpu" else "other"


@cache
def has_triton() -> bool:
    """Whether Triton is installed; whether it can compile shows only when it does."""
    return find_spec("triton") is not None


def takes_ptx(device: torch.device) -> bool:
    """Whether inline PTX compiles for the device: an NVIDIA GPU, not AMD's and not the interpreter."""
    return device.type == "cuda" and torch.version.hip is None


def why_no_triton(device: torch.device) -> str | None:
    """Why no Triton kernel can run on the device, in words for the user; None if they can be tried."""
    if device.type == "cpu":
        return "kernels are for GPUs"
    if generation(device) == "other":
        return f"no kernel is made for this {device.type} device"
    if not has_triton():
        return "Triton is not installed"
    return None


@cache
def processors(index: int) -> int:
    """Streaming multiprocessors or compute units of a GPU."""
    return torch.cuda.get_device_properties(index).multi_processor_count
