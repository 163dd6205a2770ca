"""Who writes a file: one process at a time, known to the others, and what killed ones left behind is swept away.

While NAME is written, two files lie beside it: NAME.svdq-lock, which the system locks and which says who holds it, and
NAME.HOST-PROCESS-RANDOM.part, the new file. The system lets go of a lock when its process ends, however it ends; so a
part whose lock is free has no writer any more. On a disk without locks, as some shared ones are, parts still have names
of their own, and nothing is swept.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import SVDQuantError

logger = logging.getLogger("svdquant")

LOCK_SUFFIX = ".svdq-lock"
LONGEST_STEM = 200  # bytes of a name that lock and part begin with; most disks take 255 for all of a name
ABANDONED = 24 * 3600  # seconds without a change after which a part that another machine began counts as left behind
HOLDER_BYTES = 1000  # of a lock's text that are read
_PART = re.compile(r"(?P<stem>.+)\.(?P<host>[0-9a-f]{8})-\d+-[0-9a-f]{8}\.part", re.DOTALL)
_LOCKED_BYTE = 1 << 30  # far behind the text: on Windows nobody else can read a locked byte
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_held: dict[Path, int] = {}  # lock -> thread of this process that holds it


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the name of a file to be written; its folder must be there. The same thread may claim it again within.

    Raises:
        SVDQuantError: another process, or another thread of this one, writes it; the message says who.
        OSError: the folder cannot be written.
    """
    lock = _lock_of(path)
    if _held.get(lock) == threading.get_ident():
        yield
        return
    file = _take(path, lock)
    _held[lock] = threading.get_ident()
    try:
        yield
    finally:
        del _held[lock]
        if file is not None:
            _let_go(file, lock)


def part_of(path: Path) -> Path:
    """A name of this writer's own for the new file, beside the old one."""
    return path.with_name(f"{_stem(path)}.{_host_mark()}-{os.getpid()}-{secrets.token_hex(4)}.part")


def sweep(folder: Path) -> None:
    """Remove what writers that are gone have left in a folder; what others are writing stays."""
    with suppress(OSError):
        for file in sorted(folder.resolve().iterdir()):
            match = _PART.fullmatch(file.name)
            if match and _is_abandoned(file, match):
                file.unlink(missing_ok=True)
                logger.info("removed %s, which an interrupted run had left", file)
            elif file.name.endswith(LOCK_SUFFIX) and file not in _held:
                _is_free(file)  # and removes it


def _is_abandoned(part: Path, match: re.Match) -> bool:
    lock = part.with_name(match["stem"] + LOCK_SUFFIX)
    # what this thread holds and has not begun to write was another's; where nothing is held, the system knows
    free = _held[lock] == threading.get_ident() if lock in _held else _is_free(lock)
    return free and (match["host"] == _host_mark() or time.time() - part.stat().st_mtime > ABANDONED)


def _is_free(lock: Path) -> bool:
    """Whether nobody holds a lock, on a disk that has locks; it is removed then."""
    try:
        file = lock.open("a+b")
        try:
            _lock(file)
        except OSError:
            file.close()
            return False
        _let_go(file, lock)
    except OSError:
        return False
    return True


def _take(path: Path, lock: Path) -> BinaryIO | None:
    """The open file of a lock that is now held; None where the disk has no locks."""
    while True:
        file = lock.open("a+b")
        try:
            _lock(file)
        except OSError as error:
            holder = _read_holder(file)
            file.close()
            if error.errno in _NO_LOCKS:
                logger.debug("%s: this disk has no locks (%s)", lock, error)
                lock.unlink(missing_ok=True)
                return None
            raise SVDQuantError(
                f"{path}: another run is writing this file ({holder}). Wait for it, or choose another name."
            ) from error
        if _has_name(file, lock):
            _write_holder(file)
            return file
        file.close()  # whoever held it before us has removed it in between


def _let_go(file: BinaryIO, lock: Path) -> None:
    """Remove a lock that is held, before anybody else can hold it; Windows removes only what nobody has open."""
    with suppress(OSError):
        if os.name == "nt":
            _unlock(file)
            file.close()
            lock.unlink(missing_ok=True)
        elif _has_name(file, lock):
            lock.unlink(missing_ok=True)
    file.close()


def _has_name(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is still the one of that name; what is open on Windows cannot lose it."""
    try:
        return os.name == "nt" or os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(file: BinaryIO) -> None:
    holder = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # a full disk: the lock holds without its text
        file.truncate(0)
        file.write(json.dumps(holder).encode())
        file.flush()


def _read_holder(file: BinaryIO) -> str:
    """Who holds a lock, in words."""
    try:
        file.seek(0)
        holder = json.loads(file.read(HOLDER_BYTES))
        return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "it does not say which"


def _stem(path: Path) -> str:
    """The name; of a long one the beginning and a hash."""
    name = os.fsencode(path.name)
    if len(name) <= LONGEST_STEM:
        return path.name
    return f"{name[:LONGEST_STEM].decode('utf-8', 'ignore')}-{hashlib.sha256(name).hexdigest()[:8]}"


def _lock_of(path: Path) -> Path:
    return path.parent.resolve() / (_stem(path) + LOCK_SUFFIX)


def _host_mark() -> str:
    return hashlib.sha256(socket.gethostname().encode("utf-8", "replace")).hexdigest()[:8]


if os.name == "nt":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        """Raise OSError where another handle holds it."""
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]

    def _unlock(file: BinaryIO) -> None:
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        """Raise OSError where another open file holds it."""
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: BinaryIO) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
