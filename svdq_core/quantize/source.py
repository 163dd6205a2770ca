"""Telling models apart without reading them whole."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

SAMPLED_VALUES = 1024  # of each tensor, evenly spread: a finetune changes nearly all weights
HASHED_BEGINNING = 1 << 20
HASHED_PIECES, HASHED_BYTES = 1024, 4096  # spread over a file


def hash_tensors(tensors: Iterable[tuple[str, Tensor]], *further: str) -> str:
    """A hash of names, dtypes, shapes and evenly spread values, in any order of the tensors.

    Args:
        tensors: name and tensor, any dtype and device; subclasses that hold something else count by shape alone.
        further: whatever else tells two sources apart.

    Returns:
        32 hexadecimal digits.
    """
    digests = [_digest(name, tensor) for name, tensor in tensors]
    return hashlib.sha256("\n".join([*sorted(digests), *further]).encode()).hexdigest()[:32]


def _digest(name: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    if type(tensor) in (Tensor, torch.nn.Parameter) and tensor.numel():
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLED_VALUES)][:SAMPLED_VALUES]
        digest.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"{name} {digest.hexdigest()}"


def hash_files(paths: Iterable[Path], *further: str) -> str:
    """A hash of the sizes, beginnings and evenly spread pieces of files; quick for files of any size.

    Args:
        further: whatever else tells two sources apart.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256("\n".join(further).encode())
    for path in paths:
        size = path.stat().st_size
        digest.update(f"\n{size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(HASHED_BEGINNING))  # a safetensors header: names, dtypes, shapes
            for piece in range(HASHED_PIECES):
                file.seek(size * piece // HASHED_PIECES)
                digest.update(file.read(HASHED_BYTES))
    return digest.hexdigest()[:32]
