"""One safetensors file: tensors by name, and a clear sentence for whatever is another kind of file."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ..errors import CheckpointError
from .read_errors import printable, reading
from .safetensors_header import MOST_HEADER_BYTES, HeaderError, TensorPlace, parse_header
from .source_file import SourceFile

DOWNLOAD_AGAIN = "It is damaged or its download is incomplete; download it again."
SAFETENSORS = "safetensors"  # a kind that says no more than the format
_LENGTH_BYTES = 8  # of the number that says how long the header is
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class SafetensorsFile:
    """A file whose header has been read.

    Args:
        path: of the file; what is wrong with it is said under `shown`, its name if None.
        kind: of file, and advice: what to do if it is damaged; for messages.

    Raises:
        CheckpointError: it is not there, damaged, or of another kind.
    """

    def __init__(self, path: Path, shown: str | None = None, kind: str = SAFETENSORS, advice: str = DOWNLOAD_AGAIN):
        self.path, self.shown, self._kind, self._advice = path, shown or printable(path.name), kind, advice
        with reading(self.shown, advice):
            if not path.is_file():  # an error for a name that no disk can have
                raise CheckpointError(f"{self.shown}: there is no such file.")
            self._source = SourceFile(path, self.shown)
            try:
                self.metadata, self._places, self._start = self._read_header()
            except HeaderError as error:
                raise CheckpointError(f"{self.shown}: not a readable {kind} file ({error}). {advice}") from error
            finally:
                self._source.release()

    def names(self) -> list[str]:
        return list(self._places)

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """A tensor, in memory of its own, or in `out`, uint8 of its size.

        Raises:
            CheckpointError: it is of a dtype that no SVDQuant format has, or the file changed.
        """
        place, dtype = self._places[name], self._known_dtype(name)
        data = self._source.read(self._start + place.begin, self.nbytes_of(name), out)
        return data.view(dtype).reshape(place.shape)

    def read_pieces(self, name: str, spans: Sequence[tuple[int, int]], count: int, out: Tensor) -> Tensor:
        """Some pieces of a tensor of `count` pieces of equal size that follow each other in the file.

        Args:
            spans: (first, stop) of pieces, in the order in which they are wanted. out: uint8 of their size.

        Returns:
            Flat, of the tensor's dtype.
        """
        place, dtype, done = self._places[name], self._known_dtype(name), 0
        piece = self.nbytes_of(name) // count
        for first, stop in spans:
            nbytes = (stop - first) * piece
            self._source.read(self._start + place.begin + first * piece, nbytes, out[done : done + nbytes])
            done += nbytes
        return out.view(dtype)

    def _known_dtype(self, name: str) -> torch.dtype:
        dtype = self._places[name].dtype
        if dtype not in DTYPES:
            raise CheckpointError(f"{self.shown}: {name} is {dtype}, which is not read here.")
        return DTYPES[dtype]

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._source.size

    def nbytes_of(self, name: str) -> int:
        """Size of a tensor."""
        return self._places[name].end - self._places[name].begin

    def dtype(self, name: str) -> str:
        return self._places[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file is another one than when it was opened."""
        self._source.check()

    def release(self) -> None:
        """Close the file until the next read."""
        self._source.release()

    def _read_header(self) -> tuple[dict[str, str], dict[str, TensorPlace], int]:
        size = self._source.size
        start = self._source.read_bytes(0, min(64, size))
        nbytes = struct.unpack("<Q", start[:_LENGTH_BYTES])[0] if size >= _LENGTH_BYTES else None
        # the length first: a sound header may begin with the same two bytes as a zip file or a pickle
        if nbytes is None or nbytes > min(MOST_HEADER_BYTES, size - _LENGTH_BYTES):
            self._refuse_other_kinds(start, nbytes)
        text = self._source.read_bytes(_LENGTH_BYTES, nbytes)
        behind = _LENGTH_BYTES + nbytes
        return *parse_header(text, size - behind), behind

    def _refuse_other_kinds(self, start: bytes, header_bytes: int | None) -> NoReturn:
        size = self._source.size
        if size == 0:
            raise CheckpointError(f"{self.shown}: the file is empty. {self._advice}")
        kind = f"not a {self._kind} file" if self._kind == SAFETENSORS else f"not a readable {self._kind} file"
        for found, what, remedy in (
            (start[:4] == b"GGUF", "a GGUF file", "Load it with a GGUF loader; it holds no SVDQuant layers."),
            (
                start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"),
                "a pickle (.pt, .ckpt)",
                "Only safetensors files are read here, and the folder with the model.pt, scale.pt, smooth.pt and "
                "branch.pt of deepcompressor.",
            ),
            (start.lstrip()[:1] == b"<", "a web page", "Download the model itself."),
            (start.startswith(b"version https://git-lfs"), "a Git LFS pointer", "Run `git lfs pull`."),
        ):
            if found:
                remedy = remedy if self._kind == SAFETENSORS else self._advice
                raise CheckpointError(f"{self.shown}: this is {what}, {kind}. {remedy}")
        has = f"the file has {size}"
        says = f"its header claims {header_bytes} bytes, {has}" if header_bytes is not None else f"{has} bytes"
        raise CheckpointError(f"{self.shown}: {kind}, or cut off: {says}. {self._advice}")
