"""Writing a file so that nothing is lost: beside its name first, renamed when complete, free space checked before."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ..errors import SVDQuantError
from .safetensors_write import save_file

SPARE_BYTES = 64 << 20  # left free on the disk after the file


def require_space(path: Path, nbytes: int) -> None:
    """Raise SVDQuantError unless the disk that will hold `path` has room for nbytes."""
    free = shutil.disk_usage(path.parent).free
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
        SVDQuantError: no room, or the folder cannot be written; an older file of that name is left as it was.
    """
    with replacing(path, sum(t.nbytes for t in tensors.values())) as part:
        save_file(tensors, part, metadata=metadata)


@contextmanager
def replacing(path: Path, nbytes: int) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends without an error, and else disappears.

    Args:
        nbytes: how large the file will be.

    Raises:
        SVDQuantError: no room, or the folder cannot be written; an older file of that name is left as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path, nbytes)
        try:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise SVDQuantError(f"{path}: cannot be written ({error}). Nothing was changed.") from error
