"""One file of torch.save, read without running anything in it: tensors by name, memory-mapped.

Such a file is a zip of raw storages and a pickle that says which tensors they make. The pickle is untrusted: only
tensors and plain values are rebuilt (weights_only), a storage must lie in the file as it is, uncompressed, and a
tensor must not claim more values than its storage has.
"""

import pickle
import struct
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError

# what a damaged or hostile pickle makes the restricted unpickler raise
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    EOFError,
    OSError,
    MemoryError,
)
Flag = bool | int | float | str | None


class PickleFile:
    """A dictionary that torch.save wrote: name -> tensor, name -> {name: tensor}, or name -> plain value.

    Args:
        path: of the file; what is wrong with it is said under `shown`.

    Raises:
        CheckpointError: it is damaged, of another kind, or holds anything but tensors and plain values.
    """

    def __init__(self, path: Path, shown: str):
        self.path, self.shown = path, shown
        self.metadata: dict[str, str] = {}
        self.flags: dict[str, Flag] = {}
        self._tensors: dict[str, Tensor] = {}
        self._load()

    def names(self) -> list[str]:
        """Names of the tensors, those of an inner dictionary as OUTER/INNER; the name of the file goes before all."""
        return list(self._tensors)

    def read(self, name: str) -> Tensor:
        """A view of the mapped file, no copy."""
        return self._tensors[name]

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].dtype).removeprefix("torch.")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def release(self) -> None:
        """Map the file anew, so that pages already read stop counting as this process's memory."""
        self._load()

    def _load(self) -> None:
        try:
            self._check_zip()
            content = torch.load(str(self.path), map_location="cpu", weights_only=True, mmap=True)
        except _DAMAGE as error:
            reason = str(error).split("\n")[0][:200]
            raise CheckpointError(
                f"{self.shown}: cannot be read safely as tensors ({type(error).__name__}: {reason}). It is damaged, or "
                "holds something else."
            ) from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.shown}: holds a {type(content).__name__}, expected a dictionary of tensors.")
        self._tensors = {}
        for key, value in content.items():
            if isinstance(value, dict):
                for inner, tensor in value.items():
                    self._add(f"{key}/{inner}", tensor)
            else:
                self._add(str(key), value)

    def _check_zip(self) -> None:
        if not zipfile.is_zipfile(self.path):
            raise CheckpointError(f"{self.shown}: not a file of torch.save, or cut off. Save or download it again.")
        with zipfile.ZipFile(self.path) as archive:
            inflated = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if inflated:
            raise CheckpointError(f"{self.shown}: {inflated[0]} is compressed, which torch.save never does. Refused.")

    def _add(self, name: str, value: object) -> None:
        where = f"{self.shown}: {name}"
        if isinstance(value, Flag):
            self.flags[f"{self.path.name}/{name}"] = value
            return
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise CheckpointError(f"{where} is a {type(value).__name__}, expected an ordinary tensor.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{where} claims {value.numel()} values, more than the file holds for it.")
        self._tensors[f"{self.path.name}/{name}"] = value.detach()
