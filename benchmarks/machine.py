"""What stands above every table: the machine, the versions, the commit."""

import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def header(commit: str | None) -> str:
    """One line.

    Args:
        commit: what to print for it; None: ask git.
    """
    import torch

    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "not installed"
    device = "CPU"
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        device = f"{gpu.name}, {gpu.multi_processor_count} processors"
    return (
        f"{device}, torch {torch.__version__}, Triton {triton_version}, Python {platform.python_version()}, "
        f"{commit or _commit()}"
    )


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown commit"
