"""A user's file while it is read: never mapped into memory, and noticed when somebody changes it meanwhile.

Mapping would be a little cheaper, but a file that is cut short under a mapping kills the process, and what is
overwritten under it changes without a word. Here every piece is read into memory of its own, and after each the file
must be what it was when it was opened: the same one, of the same size and time of last change.
"""

import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..arena import empty
from ..errors import CheckpointError

LARGEST_READ = 1 << 30  # bytes of one system call; the limit of Linux and macOS is just below 2 GiB


class SourceFile:
    """A file that pieces are read from, by any thread. It is open only between a read and the next release().

    Args:
        path: of the file; what is wrong with it is said under `shown`.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, shown: str):
        self.path, self.shown = path, shown
        self._lock = threading.Lock()
        self._file: BinaryIO | None = path.open("rb", buffering=0)
        self._status = os.fstat(self._file.fileno())

    @property
    def size(self) -> int:
        return self._status.st_size

    def read(self, start: int, nbytes: int, out: Tensor | None = None) -> Tensor:
        """(nbytes,) uint8 from a place in the file; in `out` if given.

        Raises:
            CheckpointError: the file has changed, or cannot be read.
        """
        data = empty((nbytes,), torch.uint8) if out is None else out
        view, done = memoryview(data.numpy().data), 0
        try:
            file = self._opened()
            while done < nbytes:
                count = self._read_into(file, view[done : done + LARGEST_READ], start + done)
                if not count:
                    break
                done += count
            self._compare(os.fstat(file.fileno()))
        except OSError as error:
            raise CheckpointError(f"{self.shown}: cannot be read ({error}).") from error
        if done < nbytes:
            raise CheckpointError(
                f"{self.shown}: ends at byte {start + done}, expected {start + nbytes}. It is cut off."
            )
        return data

    def read_bytes(self, start: int, nbytes: int) -> bytes:
        """As read(), for what is not a tensor."""
        return self.read(start, nbytes).numpy().tobytes()

    def check(self) -> None:
        """Raise CheckpointError unless the name still leads to the file that was opened, unchanged."""
        try:
            with self.path.open("rb", buffering=0) as file:
                self._compare(os.fstat(file.fileno()))
        except FileNotFoundError as error:
            raise self._changed("it is gone") from error
        except OSError as error:
            raise CheckpointError(f"{self.shown}: cannot be read ({error}).") from error

    def release(self) -> None:
        """Close the file; the next read opens it again, and it must be the same."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __del__(self):
        if hasattr(self, "_file"):  # not where opening failed
            self.release()

    def _opened(self) -> BinaryIO:
        with self._lock:
            if self._file is None:
                try:
                    self._file = self.path.open("rb", buffering=0)
                except FileNotFoundError as error:
                    raise self._changed("it is gone") from error
                self._compare(os.fstat(self._file.fileno()))
            return self._file

    def _read_into(self, file: BinaryIO, view: memoryview, start: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(file.fileno(), [view], start)
        with self._lock:  # Windows reads only from where the file stands
            file.seek(start)
            return file.readinto(view)  # pyright: ignore[reportAttributeAccessIssue]

    def _compare(self, now: os.stat_result) -> None:
        before = self._status
        if (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            raise self._changed("another file has its name now")
        if now.st_size != before.st_size:
            raise self._changed(f"it had {before.st_size} bytes and has {now.st_size}")
        if now.st_mtime_ns != before.st_mtime_ns:
            written = time.strftime("%H:%M:%S", time.localtime(now.st_mtime))
            raise self._changed(f"something wrote into it at {written}")

    def _changed(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.shown}: the file changed while it was read: {what}. Wait until nothing writes it, and start again."
        )
