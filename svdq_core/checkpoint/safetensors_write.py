"""The bytes of a safetensors file: header, and where each tensor lies behind it. Equal input gives equal bytes."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import SVDQuantError
from .output import Output, whole

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


def layout(outputs: Sequence[Output], metadata: dict[str, str]) -> tuple[bytes, dict[str, int], int]:
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


def write_block(file: BinaryIO, block: Tensor) -> int:
    """Write a tensor's bytes in row-major order; return how many."""
    flat = block.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return file.write(flat.numpy().data) if flat.numel() else 0


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors that are all in memory."""
    outputs = [whole(name, tensor) for name, tensor in tensors.items()]
    header, offsets, _ = layout(outputs, metadata)
    with path.open("wb") as file:
        file.write(header)
        for name in sorted(offsets, key=lambda n: offsets[n]):
            write_block(file, tensors[name])
