"""One safetensors file: tensors by name, memory-mapped, and a clear sentence for whatever is another kind of file."""

import struct
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
DTYPES = {
    "BOOL",
    "U8",
    "I8",
    "I16",
    "U16",
    "F16",
    "BF16",
    "I32",
    "U32",
    "F32",
    "F64",
    "I64",
    "U64",
    "F8_E4M3",
    "F8_E5M2",
}


class SafetensorsFile:
    """An open file.

    Args:
        path: of the file; what is wrong with it is said under `shown`, its name if None.

    Raises:
        CheckpointError: it is not there, damaged, or of another kind.
    """

    def __init__(self, path: Path, shown: str | None = None):
        self.path, self.shown = path, shown or path.name
        if not path.is_file():
            raise CheckpointError(f"{self.shown}: there is no such file.")
        try:
            self._refuse_other_kinds()
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.shown}: not a readable safetensors file ({error}). It is damaged or its download is "
                "incomplete; download it again."
            ) from error
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def names(self) -> list[str]:
        return list(self._file.keys())

    def read(self, name: str) -> Tensor:
        """A view of the mapped file, no copy."""
        dtype = self.dtype(name)
        if dtype not in DTYPES:
            raise CheckpointError(f"{self.shown}: {name} is {dtype}, which no SVDQuant format uses.")
        return self._file.get_tensor(name)

    def dtype(self, name: str) -> str:
        return self._file.get_slice(name).get_dtype()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def release(self) -> None:
        """Map the file anew, so that pages already read stop counting as this process's memory."""
        self._file = safe_open(self.path, framework="pt")

    def _refuse_other_kinds(self) -> None:
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            start = file.read(64)
        if size == 0:
            raise CheckpointError(f"{self.shown}: the file is empty. Download it again.")
        header_bytes = struct.unpack("<Q", start[:8])[0] if size >= 8 else None
        # the length first: a sound header may begin with the same two bytes as a zip file or a pickle
        if header_bytes is not None and header_bytes <= min(MAX_HEADER_BYTES, size - 8):
            return
        if start[:4] == b"GGUF":
            raise CheckpointError(
                f"{self.shown}: this is a GGUF file. Load it with a GGUF loader; it holds no SVDQuant layers."
            )
        if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
            raise CheckpointError(
                f"{self.shown}: this is a pickle (.pt, .ckpt), not a safetensors file. Only safetensors files are read "
                "here, and the folder with the model.pt, scale.pt, smooth.pt and branch.pt of deepcompressor."
            )
        if start.lstrip()[:1] == b"<":
            raise CheckpointError(
                f"{self.shown}: this is a web page, not a safetensors file. Download the model itself."
            )
        if start.startswith(b"version https://git-lfs"):
            raise CheckpointError(
                f"{self.shown}: this is a Git LFS pointer, not a safetensors file. Run `git lfs pull`."
            )
        raise CheckpointError(
            f"{self.shown}: not a safetensors file, or cut off: its header claims {header_bytes} bytes, the file has "
            f"{size}. Download it again."
        )
