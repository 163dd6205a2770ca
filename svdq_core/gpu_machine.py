"""What decides how fast kernels are on this machine, in words, and where the pack keeps what it found out about it."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from .checkpoint.metadata import pack_version

FOLDER = "comfyui-svdquant"


def state_folder() -> Path:
    """The user's folder for what programs find out and can find out again; it may not be there yet.

    It is the user's and not ComfyUI's: the GPU is the same for all of them, and the command line asks as well.
    """
    if platform.system() == "Windows":
        root = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / FOLDER


def nvidia_driver() -> str:
    """Version of the NVIDIA driver, or ""."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.split("\n")[0].strip() if answer.returncode == 0 else ""


def architecture_name(device: torch.device) -> str:
    """ "sm_89", "gfx1100": what compilers call the GPU, whether a kernel is made for it or not."""
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@cache
def describe_gpu(device: torch.device) -> dict[str, str]:
    """What the speed of kernels on a GPU depends on: the GPU and the versions of everything that makes or calls them.

    Nothing in it tells who uses the machine.
    """
    triton = next((v for v in (_version_of("triton"), _version_of("triton-windows")) if v != "none"), "none")
    return {
        "gpu": torch.cuda.get_device_properties(device).name,
        "chip": architecture_name(device),
        "driver": nvidia_driver() if not torch.version.hip else "of ROCm",
        "system": platform.system(),
        "torch": torch.__version__,
        "triton": triton,
        "comfy-kitchen": _version_of("comfy-kitchen"),
        "pack": pack_version(),
    }
