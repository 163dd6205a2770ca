"""A file of tensors read into memory at once; nothing holds on to it afterwards, as a mapping would."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from ..errors import CheckpointError
from .safetensors_file import DOWNLOAD_AGAIN, SafetensorsFile
from .source_file import SourceFile

SAFETENSORS_ENDINGS = (".safetensors", ".sft")


def read_whole(
    path: Path,
    shown: str,
    kind: str,
    look: Callable[[list[str], int], None] | None = None,
    wanted: Callable[[list[str]], list[str]] = lambda names: names,
) -> dict[str, Tensor]:
    """Tensors by name: all of a file of safetensors or torch.save, whose numbers become tensors of one value.

    Args:
        shown, kind: name and kind of the file, for messages.
        look: is given the names of tensors and the file's size before any tensor is read, and may raise. A pickle's
            names are not known before.
        wanted: which of the tensors of a safetensors file to read.

    Raises:
        CheckpointError: a safetensors file is damaged, a pickle holds something else than tensors, or any file changed
            while it was read.
        OSError and whatever torch raises for a damaged pickle: each kind has its own errors.
    """
    if path.suffix.lower() in SAFETENSORS_ENDINGS:
        file = SafetensorsFile(path, shown, kind, DOWNLOAD_AGAIN)
        if look is not None:
            look(file.names(), file.nbytes)
        try:
            tensors = {name: file.read(name) for name in wanted(file.names())}
            file.check_unchanged()
        finally:
            file.release()
        return tensors
    source = SourceFile(path, shown)  # not to read with: torch reads one tensor after the other by itself
    source.release()
    with path.open("rb") as opened:
        try:
            content = _inner(torch.load(opened, map_location="cpu", weights_only=True))
        except UnpicklingError as error:  # torch advises to run whatever the file holds, which nobody should
            raise CheckpointError(
                f"{shown}: not a readable {kind} file: it holds something else than tensors, or is damaged. Only "
                "tensors are read, never programs. Take a .safetensors file."
            ) from error
    source.check()
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
