"""What a training writes: model files that say where they come from, and checkpoints to go on from."""

import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..svdq_core.checkpoint.save import replacing, save_tensors

LICENCE = "Apache-2.0"
SOURCE = "trained from scratch by the ComfyUI-SVDQuant project on scenes that it drew itself; see demo/models/README.md"


def write_model(path: Path, weights: dict[str, Tensor], title: str, **facts: object) -> None:
    """Write weights as BF16 safetensors, with title, licence, source, machine and `facts` in the metadata."""
    facts = {"torch": torch.__version__, "device": device_name(), **facts}
    metadata = {"format": "pt", "title": title, "license": LICENCE, "source": SOURCE}
    metadata |= {name: str(fact) for name, fact in sorted(facts.items())}
    rounded = {name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in weights.items()}
    save_tensors(path, rounded, metadata)


def read_model(module: nn.Module, path: Path, device: torch.device) -> nn.Module:
    """Fill a module with a file's weights as fp32, on `device`, ready for use, not for training."""
    module.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
    return module.to(device).eval().requires_grad_(False)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a training; whoever stops it in between leaves the last one whole."""
    with replacing(path, nbytes=0) as part:  # how much it takes is known only afterwards
        torch.save(state, part)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read the state of a training, on the CPU; None when there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def device_name() -> str:
    """The GPU, or the processor where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}"
