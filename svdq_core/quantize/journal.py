"""The finished layers of a run, one file each, so that what was interrupted goes on where it stopped.

The files lie in a folder beside the one to be written and hold the tensors that it will have. Each carries a
fingerprint of everything that decides its bytes; what carries another one, or is damaged, is thrown away. A second run
to the same name is kept out: claim.py.
"""

import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.output import Output
from ..checkpoint.read_errors import reading
from ..checkpoint.safetensors_file import DTYPES, SafetensorsFile
from ..checkpoint.safetensors_write import save_file
from ..checkpoint.save import writing
from ..errors import SVDQuantError
from .one_layer import PartReport

logger = logging.getLogger("svdquant")

FOLDER_SUFFIX = ".journal"
PART_SUFFIX = ".part"
LAYER_SUFFIX = ".layer"  # not .safetensors: ComfyUI would list every layer as a model
_START_AGAIN = "Delete it and start again; the other layers are kept."


@dataclass(frozen=True)
class StoredLayer:
    """What became of one host Linear.

    Args:
        name: its module name.
        outputs: tensors of the file to be, by their names there; read from the journal when written.
        reports: one for each part; none where it stays in 16 bits.
        kept: one sentence why it stays in 16 bits, "" otherwise.
        fingerprint: of the run that made it.
    """

    name: str
    outputs: tuple[Output, ...]
    reports: tuple[PartReport, ...]
    kept: str
    fingerprint: str = ""


def journal_folder(target: Path) -> Path:
    """Where the journal of a file to be written lies."""
    return target.with_name(target.name + FOLDER_SUFFIX)


class Journal:
    """Finished layers on disk.

    Args:
        target: the file that the run will write.
        fingerprint: of source, settings and versions; layers of another one do not count.

    Raises:
        SVDQuantError: the folder cannot be made.
    """

    def __init__(self, target: Path, fingerprint: str):
        self.target, self.folder, self.fingerprint = target, journal_folder(target), fingerprint
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SVDQuantError(f"{self.folder}: cannot be made ({error}). Choose another folder.") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the journal for this process; the other ranks of a run do not ask.

        Raises:
            SVDQuantError: another process writes to the same name.
        """
        with writing(self.target):
            for part in self.folder.glob(f"*{PART_SUFFIX}"):
                with suppress(OSError):
                    part.unlink(missing_ok=True)  # of a run that was killed
            try:
                yield
            finally:
                if not any(self.folder.glob(f"*{LAYER_SUFFIX}")):
                    self.remove()  # nothing to go on from

    def names(self) -> set[str]:
        """The layers that are there; files of another fingerprint and damaged ones are deleted."""
        found, useless = set(), 0
        for path in self.folder.glob(f"*{LAYER_SUFFIX}"):
            if self._is_ours(path):
                found.add(path.name.removesuffix(LAYER_SUFFIX))
            else:
                with suppress(OSError):  # a folder of that name; writing the layer will say so
                    path.unlink(missing_ok=True)
                useless += 1
        if useless:
            text = "%s: %d finished layers are damaged or of other settings, source or version; they start over"
            logger.info(text, self.target.name, useless)
        return found

    def put(self, name: str, tensors: Mapping[str, Tensor], reports: Sequence[PartReport] = (), kept: str = "") -> None:
        """Store one layer, in place of what was there.

        Args:
            tensors: of the file to be, contiguous.

        Raises:
            SVDQuantError: the disk is full or cannot be written.
        """
        header = {
            "fingerprint": self.fingerprint,
            "reports": json.dumps([asdict(report) for report in reports]),
            "kept": kept,
            "sums": json.dumps({key: _sum(tensor) for key, tensor in tensors.items()}),
        }
        path = self._path(name)
        part = path.with_suffix(PART_SUFFIX)
        try:
            save_file(tensors, part, header)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise SVDQuantError(
                f"{path}: cannot be written ({error}). Make room and start again; finished layers are kept."
            ) from error

    def get(self, name: str) -> StoredLayer:
        """One layer.

        Raises:
            SVDQuantError: it is not there or damaged.
        """
        path = self._path(name)
        with reading(str(path), _START_AGAIN):
            file = SafetensorsFile(path, str(path), "journal", _START_AGAIN)
            header = file.metadata
            reports = tuple(_report(values) for values in json.loads(header["reports"]))
            sums = json.loads(header["sums"])
            outputs = tuple(_output(file, key, sums[key]) for key in file.names())
            return StoredLayer(name, outputs, reports, header["kept"], header["fingerprint"])

    def remove(self) -> None:
        """Delete the folder; for when the file itself is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{LAYER_SUFFIX}"

    def _is_ours(self, path: Path) -> bool:
        """Whether a file is a layer of this run; its values are looked at when they are needed."""
        try:
            return self.get(path.name.removesuffix(LAYER_SUFFIX)).fingerprint == self.fingerprint
        except SVDQuantError:
            return False


def stored_bytes(target: Path) -> int:
    """What the journal of a file to be written takes on the disk already."""
    total = 0
    with suppress(OSError):
        for file in journal_folder(target).iterdir():
            total += file.lstat().st_size
    return total


def _output(file: SafetensorsFile, name: str, expected: int) -> Output:
    """A tensor of a layer's file, read and compared with its sum when it is written."""

    def read() -> list[Tensor]:
        tensor = file.read(name)
        file.release()
        if _sum(tensor) != expected:
            raise SVDQuantError(f"{file.shown}: {name} is damaged. {_START_AGAIN}")
        return [tensor]

    return Output(name, file.shape(name), DTYPES[file.dtype(name)], read)


def _sum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes: a disk that lost power may have kept a file's length and not what was in it."""
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _report(values: dict) -> PartReport:
    report = PartReport(**{**values, "rows": tuple(values["rows"]), "columns": tuple(values["columns"])})
    texts, spans = (report.layer, report.scheme, report.smoothing, report.rounding), (report.rows, report.columns)
    sound = all(isinstance(text, str) for text in texts) and isinstance(report.rank, int)
    sound = sound and all(len(span) == 2 and all(isinstance(n, int) for n in span) for span in spans)
    if not sound or not isinstance(report.relative_error, (int, float)) or not isinstance(report.measured, bool):
        raise ValueError(f"no report of a part: {values}")
    return report
