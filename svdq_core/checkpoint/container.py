"""Opening a file or folder: tensors by name, memory-mapped, and a clear sentence for whatever is not an SVDQuant checkpoint."""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

LEGACY_FILES = ("transformer_blocks.safetensors", "unquantized_layers.safetensors")
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.")  # what other tools put in front
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


class Checkpoint(Mapping[str, Tensor]):
    """Tensors by name, read from the file only when asked for.

    Args:
        path: a .safetensors file, or a legacy folder with the two files of LEGACY_FILES.

    Raises:
        CheckpointError: the path is neither, is damaged, or is a kind of file that cannot hold SVDQuant layers.
    """

    def __init__(self, path: Path):
        self.path = path
        files = [path / name for name in LEGACY_FILES] if path.is_dir() else [path]
        self._handles: dict[str, safe_open] = {}
        self._stored_names: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        for file in files:
            handle = _open_safetensors(file)
            names = list(handle.keys())
            prefix = _common_prefix(names)
            for name in names:
                short = name.removeprefix(prefix)
                if short in self._handles:
                    raise CheckpointError(f"{path.name}: tensor {short} is stored twice. The file is damaged.")
                self._handles[short], self._stored_names[short] = handle, name
            self.metadata |= handle.metadata() or {}
        for name in ("config", "comfy_config"):
            file = path / f"{name}.json"
            if path.is_dir() and file.is_file():
                self.metadata.setdefault(name, file.read_text(encoding="utf-8"))

    @property
    def name(self) -> str:
        return self.path.name

    def __getitem__(self, name: str) -> Tensor:
        return self._handles[name].get_tensor(self._stored_names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def dtype(self, name: str) -> str:
        """The dtype as the safetensors header names it, without reading the tensor: "BF16", "I8", ..."""
        return self._handles[name].get_slice(self._stored_names[name]).get_dtype()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the tensor."""
        return tuple(self._handles[name].get_slice(self._stored_names[name]).get_shape())


def _common_prefix(names: list[str]) -> str:
    return next((p for p in PREFIXES if names and all(name.startswith(p) for name in names)), "")


def _open_safetensors(path: Path):
    if not path.is_file():
        if path.name in LEGACY_FILES:
            raise CheckpointError(
                f"{path.parent.name}: {path.name} is missing. A legacy SVDQuant folder holds {' and '.join(LEGACY_FILES)}."
            )
        raise CheckpointError(f"{path.name}: there is no such file.")
    _refuse_other_kinds(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path.name}: not a readable safetensors file ({error}). It is damaged or its download is incomplete; "
            "download it again."
        ) from error


def _refuse_other_kinds(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    if size == 0:
        raise CheckpointError(f"{path.name}: the file is empty. Download it again.")
    if start[:4] == b"GGUF":
        raise CheckpointError(f"{path.name}: this is a GGUF file. Load it with a GGUF loader; it holds no SVDQuant layers.")
    if start[:2] in (b"PK", b"\x80\x02"):
        raise CheckpointError(
            f"{path.name}: this is a pickle (.pt, .ckpt), not a safetensors file. Only safetensors files are read here."
        )
    header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
    if header_bytes > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{path.name}: not a safetensors file, or cut off: its header claims {header_bytes} bytes, "
            f"the file has {size}. Download it again."
        )


def read_json(checkpoint: Checkpoint, key: str) -> dict:
    """A JSON object from the metadata; {} where it is absent.

    Raises:
        CheckpointError: it is there and is not a JSON object.
    """
    text = checkpoint.metadata.get(key)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{checkpoint.name}: metadata {key} is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{checkpoint.name}: metadata {key} is not a JSON object.")
    return value
