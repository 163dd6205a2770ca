"""The finished layers of a run, one file each, so that what was interrupted goes on where it stopped.

The files lie in a folder beside the one to be written. Each carries a fingerprint of everything that decides its bytes;
what carries another one, or is damaged, is thrown away. A lock keeps a second run to the same name out; the system
lets go of it when the process ends, however it ends.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checkpoint.safetensors_write import save_file
from ..errors import SVDQuantError
from ..layer import BlobLayout
from .finished import Finished
from .layer import PartReport

FOLDER_SUFFIX = ".journal"
LOCK = "lock"
PLAIN = "plain."


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
        """Hold the journal for this process alone; its other ranks do not ask.

        Raises:
            SVDQuantError: another process writes to the same name.
        """
        with (self.folder / LOCK).open("a+b") as file:
            try:
                _lock(file.fileno())
            except OSError as error:
                raise SVDQuantError(
                    f"{self.target}: another run is writing this file. Wait for it, or choose another name."
                ) from error
            yield

    def names(self) -> set[str]:
        """The layers that are there; files of another fingerprint and damaged ones are deleted."""
        found = set()
        for path in self.folder.glob("*.safetensors"):
            if self._header(path).get("fingerprint") == self.fingerprint:
                found.add(path.name.removesuffix(".safetensors"))
            else:
                path.unlink()
        return found

    def put(self, finished: Finished) -> None:
        """Store one layer.

        Raises:
            SVDQuantError: the disk is full or cannot be written.
        """
        tensors = {PLAIN + name: tensor for name, tensor in finished.plain.items()}
        header = {
            "fingerprint": self.fingerprint,
            "reports": json.dumps([asdict(report) for report in finished.reports]),
            "kept": finished.kept,
        }
        if finished.layer is not None:
            tensors["blob"], layout = finished.layer.to_blob()
            header["layout"] = layout.to_json()
            if finished.layer.bias is not None:
                tensors["bias"] = finished.layer.bias
        path = self._path(finished.name)
        part = path.with_suffix(".part")
        try:
            save_file(tensors, part, header)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise SVDQuantError(
                f"{path}: cannot be written ({error}). Make room and start again; finished layers are kept."
            ) from error

    def get(self, name: str) -> Finished:
        """One layer; its tensors are views of the mapped file.

        Raises:
            SVDQuantError: it is not there or damaged.
        """
        try:
            with safe_open(self._path(name), framework="pt") as file:
                header = file.metadata()
                tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            layer = None
            if "layout" in header:
                layer = BlobLayout.from_json(header["layout"]).read(tensors["blob"], tensors.get("bias"))
            plain = {key.removeprefix(PLAIN): t for key, t in tensors.items() if key.startswith(PLAIN)}
            reports = tuple(_report(values) for values in json.loads(header["reports"]))
            return Finished(name, layer, plain, reports, header["kept"])
        except (SafetensorError, OSError, LookupError, ValueError, TypeError) as error:
            raise SVDQuantError(f"{self._path(name)}: damaged ({error}). Delete it and start again.") from error

    def remove(self) -> None:
        """Delete the folder; for when the file itself is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _header(self, path: Path) -> dict[str, str]:
        try:
            with safe_open(path, framework="pt") as file:
                return file.metadata() or {}
        except (SafetensorError, OSError):
            return {}


def _report(values: dict) -> PartReport:
    return PartReport(**{**values, "rows": tuple(values["rows"]), "columns": tuple(values["columns"])})


def _lock(descriptor: int) -> None:
    """Raise OSError where another process holds it."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
