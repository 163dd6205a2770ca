"""The finished layers of a run, one file each, so that what was interrupted goes on where it stopped.

The files lie in a folder beside the one to be written and hold the tensors that it will have. Each carries a
fingerprint of everything that decides its bytes; what carries another one, or is damaged, is thrown away. A second run
to the same name is kept out: claim.py.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint.output import Output, whole
from ..checkpoint.safetensors_write import save_file
from ..checkpoint.save import writing
from ..errors import SVDQuantError
from .one_layer import PartReport

logger = logging.getLogger("svdquant")

FOLDER_SUFFIX = ".journal"
PART_SUFFIX = ".part"
LAYER_SUFFIX = ".layer"  # not .safetensors: ComfyUI would list every layer as a model


@dataclass(frozen=True)
class StoredLayer:
    """What became of one host Linear.

    Args:
        name: its module name.
        outputs: tensors of the file to be, by their names there; read from the journal when written.
        reports: one for each part; none where it stays in 16 bits.
        kept: one sentence why it stays in 16 bits, "" otherwise.
    """

    name: str
    outputs: tuple[Output, ...]
    reports: tuple[PartReport, ...]
    kept: str


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
            if self._header(path).get("fingerprint") == self.fingerprint:
                found.add(path.name.removesuffix(LAYER_SUFFIX))
            else:
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
        try:
            with safe_open(self._path(name), framework="pt") as file:
                header = file.metadata()
                # views of the mapped file, which live as long as the layer
                outputs = tuple(whole(key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118
            reports = tuple(_report(values) for values in json.loads(header["reports"]))
            return StoredLayer(name, outputs, reports, header["kept"])
        except (SafetensorError, OSError, LookupError, ValueError, TypeError) as error:
            raise SVDQuantError(f"{self._path(name)}: damaged ({error}). Delete it and start again.") from error

    def remove(self) -> None:
        """Delete the folder; for when the file itself is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{LAYER_SUFFIX}"

    def _header(self, path: Path) -> dict[str, str]:
        try:
            with safe_open(path, framework="pt") as file:
                return file.metadata() or {}
        except (SafetensorError, OSError):
            return {}


def _report(values: dict) -> PartReport:
    return PartReport(**{**values, "rows": tuple(values["rows"]), "columns": tuple(values["columns"])})
