"""Metadata that are known only when the rest of a file is written: room for them is left in its header."""

import json
import struct
from pathlib import Path

from ..errors import SVDQuantError

ROOM = 160  # bytes


def leave_room() -> str:
    """What stands in the header until then."""
    return " " * ROOM


def fill_in(path: Path, key: str, text: str) -> None:
    """Write a text into the room that was left under `key`, in place; nothing else in the file moves.

    Args:
        path: of a safetensors file that nobody reads yet.
        text: ASCII, cut off at ROOM bytes.

    Raises:
        SVDQuantError: no such room was left.
    """
    blank, value = (json.dumps(t)[1:-1] for t in (leave_room(), text))
    value = value[:ROOM].ljust(ROOM)
    with path.open("rb+") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = file.read(size)
        old = f'"{key}":"{blank}"'.encode()
        if header.count(old) != 1 or not text.isascii():
            raise SVDQuantError(f"{path}: no room was left for {key}.")
        file.seek(8)
        file.write(header.replace(old, f'"{key}":"{value}"'.encode()))
