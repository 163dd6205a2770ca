"""One file of torch.save, read without running anything in it: tensors by name.

Such a file is a zip of raw storages and a pickle that says which tensors they make: pickle_program.py. A storage must
lie in the file as it is, uncompressed, and a tensor must not claim more values than its storage has.
"""

import struct
import zipfile
from math import prod
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from .pickle_program import Named, StoredTensor, follow
from .read_errors import reading
from .source_file import SourceFile

MOST_RECORDS = 100_000  # tensors, nearly; the largest models have less than 20 000
_LOCAL_HEADER_BYTES = 30  # of a zip before the name; the lengths of name and extra field are its last four
_PROGRAM, _DATA, _BYTE_ORDER = "/data.pkl", "/data/", "/byteorder"
_UNSAFE = "It is damaged, or holds something else."
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
        self._tensors: dict[str, StoredTensor] = {}
        with reading(shown, _UNSAFE):
            self._source = SourceFile(path, shown)
            try:
                self._load()
            finally:
                self._source.release()

    def names(self) -> list[str]:
        """Names of the tensors, those of an inner dictionary as OUTER/INNER; the name of the file goes before all."""
        return list(self._tensors)

    def read(self, name: str) -> Tensor:
        """A tensor, in memory of its own.

        Raises:
            CheckpointError: the file is damaged there, or changed.
        """
        stored = self._tensors[name]
        size = stored.dtype.itemsize
        with reading(self.shown, _UNSAFE):
            begin = self._data_begins(self._records[stored.storage.key]) + stored.offset * size
            data = self._source.read(begin, _span(stored) * size).view(stored.dtype)
            return data.as_strided(stored.shape, stored.stride).contiguous()

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].dtype).removeprefix("torch.")

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file is another one than when it was opened."""
        self._source.check()

    def release(self) -> None:
        """Close the file until the next read."""
        self._source.release()

    def _load(self) -> None:
        program = self._open_zip()
        try:
            content = follow(program)
        except (CheckpointError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self.shown}: cannot be read safely as tensors ({error}). {_UNSAFE}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.shown}: holds a {type(content).__name__}, expected a dictionary of tensors.")
        for key, value in content.items():
            if isinstance(value, dict):
                for inner, tensor in value.items():
                    self._add(f"{key}/{inner}", tensor)
            else:
                self._add(str(key), value)

    def _open_zip(self) -> bytes:
        """Find the storages; return the pickle."""
        if not zipfile.is_zipfile(self.path):
            raise CheckpointError(f"{self.shown}: not a file of torch.save, or cut off. Save or download it again.")
        with zipfile.ZipFile(self.path) as archive:
            infos = archive.infolist()
        self._source.check()  # it was opened again
        inflated = [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]
        if inflated:
            raise CheckpointError(f"{self.shown}: {inflated[0]} is compressed, which torch.save never does. Refused.")
        if len(infos) > MOST_RECORDS:
            raise CheckpointError(f"{self.shown}: {len(infos)} records, more than any model has. Refused.")
        records = {info.filename: info for info in infos}
        program = next((name for name in records if name.endswith(_PROGRAM)), None)
        if program is None:
            raise CheckpointError(f"{self.shown}: not a file of torch.save: {_PROGRAM[1:]} is missing.")
        root = program.removesuffix(_PROGRAM)
        order = records.get(root + _BYTE_ORDER)
        if order is not None and self._record(order) != b"little":
            raise CheckpointError(f"{self.shown}: its numbers are in the order of another kind of processor.")
        data = root + _DATA
        self._records = {name.removeprefix(data): info for name, info in records.items() if name.startswith(data)}
        return self._record(records[program])

    def _record(self, info: zipfile.ZipInfo) -> bytes:
        return self._source.read_bytes(self._data_begins(info), info.file_size)

    def _data_begins(self, info: zipfile.ZipInfo) -> int:
        header = self._source.read_bytes(info.header_offset, _LOCAL_HEADER_BYTES)
        name_bytes, extra_bytes = struct.unpack_from("<HH", header, _LOCAL_HEADER_BYTES - 4)
        begin = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        if not header.startswith(b"PK\x03\x04") or begin + info.file_size > self._source.size:
            raise CheckpointError(f"{self.shown}: {info.filename[:60]!a} does not lie where the file says. {_UNSAFE}")
        return begin

    def _add(self, name: str, value: object) -> None:
        where = f"{self.shown}: {name[:100]}"
        if isinstance(value, Flag):
            self.flags[f"{self.path.name}/{name}"] = value
            return
        if not isinstance(value, StoredTensor):
            kind = f"{value.module}.{value.name}" if isinstance(value, Named) else type(value).__name__
            raise CheckpointError(f"{where} is a {kind[:100]}, expected an ordinary tensor.")
        record = self._records.get(value.storage.key)
        if record is None:
            raise CheckpointError(f"{where}: its values are not in the file. {_UNSAFE}")
        held = record.file_size // value.dtype.itemsize
        if prod(value.shape) > held or value.offset + _span(value) > held:
            raise CheckpointError(f"{where} claims {prod(value.shape)} values, more than the file holds for it.")
        self._tensors[f"{self.path.name}/{name}"] = value


def _span(stored: StoredTensor) -> int:
    """How many values of the storage lie between its first and its last, both counted."""
    if 0 in stored.shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(stored.shape, stored.stride, strict=True))
