"""Writing a safetensors file piece by piece: the header first, then each tensor at its place as it is made."""

import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import SVDQuantError
from .output import Output
from .save import replacing

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
HEADER_ALIGNMENT = 8


def write_stream(path: Path, outputs: Sequence[Output], metadata: dict[str, str], made: Iterable[Output]) -> None:
    """Write a file whose tensors need not be in memory together; the same input gives the same bytes.

    Args:
        outputs: every tensor of the file; their blocks are not called.
        metadata: key -> text.
        made: the same tensors once each, in any order; their blocks are written.

    Raises:
        SVDQuantError: no room, the folder cannot be written, or `made` is not what was announced. Then an older file of
            that name is left as it was and nothing new remains.
    """
    header, offsets, total = _layout(outputs, metadata)
    announced = {output.name: (output.shape, output.dtype) for output in outputs}
    with replacing(path, len(header) + total) as part, part.open("wb") as file:
        file.write(header)
        for output in made:
            if announced.pop(output.name, None) != (output.shape, output.dtype):
                raise SVDQuantError(f"{path}: {output.name} is not as it was announced. Did the source file change?")
            file.seek(len(header) + offsets[output.name])
            written = sum(_write(file, block) for block in output.blocks())
            if written != output.nbytes:
                raise SVDQuantError(f"{path}: {output.name} has {written} bytes, expected {output.nbytes}.")
        if announced:
            raise SVDQuantError(f"{path}: {len(announced)} tensors were announced and not made: {min(announced)}, ...")
        file.truncate(len(header) + total)


def _layout(outputs: Sequence[Output], metadata: dict[str, str]) -> tuple[bytes, dict[str, int], int]:
    """The header, where each tensor begins behind it, and how many bytes follow it.

    Wider dtypes first, so that every tensor is aligned; then by name.
    """
    entries: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offsets: dict[str, int] = {}
    total = 0
    for output in sorted(outputs, key=lambda o: (-o.dtype.itemsize, o.name)):
        if output.name in offsets:
            raise SVDQuantError(f"{output.name} would be written twice.")
        offsets[output.name] = total
        entries[output.name] = {
            "dtype": _DTYPE_NAMES[output.dtype],
            "shape": list(output.shape),
            "data_offsets": [total, total + output.nbytes],
        }
        total += output.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, offsets, total


def _write(file: BinaryIO, block: Tensor) -> int:
    flat = block.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return file.write(flat.numpy()) if flat.numel() else 0
