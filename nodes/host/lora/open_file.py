"""Reading a LoRA file: all of its tensors into memory, so that nothing holds on to the file afterwards.

The host maps safetensors files, and a trainer that saves over a mapped file in place ends the process that reads it.
"""

import threading
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from ....svdq_core.checkpoint.whole_file import read_whole
from ....svdq_core.errors import CheckpointError, LoraError
from ..files import fingerprint
from .lora_report import refuse_whole_model

# Tensors that are read again are new ones, which would have to be digested and go to the card again.
KEPT_BYTES = 1 << 30
MOST_TENSORS = 100_000  # the largest LoRAs have ten thousand

_kept: OrderedDict[tuple[str, str], dict[str, Tensor]] = OrderedDict()
_lock = threading.Lock()


def shown_name(path: str) -> str:
    """The name of a file as it can be shown: bytes that are no UTF-8 replaced."""
    return Path(path).name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def open_lora(path: str) -> dict[str, Tensor]:
    """The tensors of a LoRA file by name; those of recent files are still there.

    Raises:
        LoraError: it cannot be read, or holds too much to be one.
    """
    name = shown_name(path)
    try:
        key = path, fingerprint(path)
        with _lock:
            if key in _kept:
                _kept.move_to_end(key)
                return dict(_kept[key])
        tensors = read_whole(Path(path), name, "LoRA", lambda names, nbytes: _look(name, names, nbytes))
    except (MemoryError, torch.OutOfMemoryError, LoraError):
        raise
    except CheckpointError as error:
        raise LoraError(str(error)) from error
    except Exception as error:  # each kind of file has its own errors, and all mean the same to the user
        reason = (str(error) or type(error).__name__).split("\n")[0][:300]
        raise LoraError(
            f"{name}: not a readable LoRA file ({reason}). It is damaged or its download is incomplete; download it "
            "again."
        ) from error
    _look(name, list(tensors), 0)
    with _lock:
        _kept[key] = tensors
        while len(_kept) > 1 and sum(_nbytes(file) for file in _kept.values()) > KEPT_BYTES:
            _kept.popitem(last=False)
    return dict(tensors)


def forget_lora(path: str) -> None:
    """Keep nothing of a file that turned out to be useless; the last one would stay, however large."""
    with _lock:
        for key in [key for key in _kept if key[0] == path]:
            del _kept[key]


def _look(name: str, names: list[str], nbytes: int) -> None:
    """Refuse what is no LoRA, before gigabytes of it are read."""
    if len(names) > MOST_TENSORS:
        raise LoraError(f"{name}: the file holds {len(names)} tensors, and no LoRA has so many. It is damaged.")
    if nbytes > KEPT_BYTES:
        refuse_whole_model(name, names)


def _nbytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
