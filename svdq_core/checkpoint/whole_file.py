"""A file of tensors read into memory at once; nothing holds on to it afterwards, as a mapping would."""

import io
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

SAFETENSORS_ENDINGS = (".safetensors", ".sft")


def read_whole(path: Path) -> dict[str, Tensor]:
    """Tensors by name: all of a file of safetensors or torch.save, whose numbers become tensors of one value.

    Raises:
        whatever the two libraries raise for a damaged file: each kind has its own errors.
    """
    data = path.read_bytes()
    if path.suffix.lower() in SAFETENSORS_ENDINGS:
        return safetensors.torch.load(data)
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    content = _inner(content)
    found = {}
    for name, value in content.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):  # an alpha that was saved as a number
            value = torch.tensor(float(value))
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided:
            found[name] = value.detach()
    return found


def _inner(content: object) -> dict:
    """The dictionary of tensors of a training program's file, which may lie in another."""
    if isinstance(content, dict):
        inner = content.get("state_dict", next(iter(content.values())) if len(content) == 1 else None)
        return inner if isinstance(inner, dict) else content
    raise TypeError(f"it holds a {type(content).__name__}, not tensors by name")
