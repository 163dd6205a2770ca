"""Writing a file so that nothing is lost: beside its name first, by one writer at a time, renamed when complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from ..errors import SVDQuantError
from .claim import claimed, part_of, sweep
from .safetensors_write import save_file

SPARE_BYTES = 64 << 20  # left free on the disk after the file


def require_space(path: Path, nbytes: int) -> None:
    """Make the folder of `path`; raise SVDQuantError where that fails, or its disk has no room for nbytes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    if free < nbytes + SPARE_BYTES:
        raise SVDQuantError(
            f"{path}: {nbytes / 2**30:.2f} GiB are needed and {free / 2**30:.2f} GiB are free on this disk. "
            "Make room or choose another folder; nothing was written."
        )


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file under its final name only when it is complete.

    Args:
        tensors: contiguous, on the CPU.

    Raises:
        SVDQuantError: as replacing().
    """
    with replacing(path, sum(t.nbytes for t in tensors.values())) as part:
        save_file(tensors, part, metadata=metadata)


def save_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 under its final name only when it is complete.

    Raises:
        SVDQuantError: as replacing().
    """
    data = text.encode()
    with replacing(path, len(data)) as part:
        part.write_bytes(data)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Claim a name for a run that ends in a file of that name: its folder is made, and other writers are refused.

    Raises:
        SVDQuantError: another process writes it; or the folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with claimed(path):
            yield
    except OSError as error:
        raise _cannot_be_written(path, error) from error


@contextmanager
def replacing(path: Path, nbytes: int) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends without an error, and else disappears.

    Args:
        nbytes: how large the file will be.

    Raises:
        SVDQuantError: no room, the folder cannot be written, or another process writes the same name; an older file of
            that name is left as it was.
    """
    with writing(path):
        sweep(path.parent)
        require_space(path, nbytes)
        part = part_of(path)
        try:
            yield part
            _to_disk(part)
            part.replace(path)
            _folder_to_disk(path.parent)
        finally:
            with suppress(OSError):  # what went wrong before is what the user should read
                part.unlink(missing_ok=True)


def _to_disk(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _folder_to_disk(folder: Path) -> None:
    """Make a rename last beyond a loss of power; Windows opens no folders."""
    if os.name == "nt":
        return
    with suppress(OSError):  # some shared disks cannot; the file itself is complete
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_be_written(path: Path, error: OSError) -> SVDQuantError:
    return SVDQuantError(f"{path}: cannot be written ({error}). Nothing was changed.")
