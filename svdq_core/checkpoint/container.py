"""Opening a file or folder: tensors by name, read only when asked for."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from .safetensors_file import SafetensorsFile

LEGACY_FILES = ("transformer_blocks.safetensors", "unquantized_layers.safetensors")
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.")  # what other tools put in front
MAX_CONFIG_BYTES = 10_000_000


class Checkpoint(Mapping[str, Tensor]):
    """Tensors by name, without the prefix that other tools put in front of all of them.

    Args:
        path: a .safetensors file, or a legacy folder with the two files of LEGACY_FILES.

    Raises:
        CheckpointError: the path is neither, is damaged, or is a kind of file that cannot hold SVDQuant layers.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, str] = {}
        self._places: dict[str, tuple[SafetensorsFile, str]] = {}
        self._files = [self._open(file) for file in self._paths()]
        for file in self._files:
            names = file.names()
            prefix = _prefix(names)
            for name in names:
                if not name.startswith(prefix):
                    continue  # a text encoder or autoencoder in the same file
                short = name.removeprefix(prefix)
                if short in self._places:
                    raise CheckpointError(f"{path.name}: tensor {short} is stored twice. The file is damaged.")
                self._places[short] = file, name
            self.metadata |= file.metadata
        for name in ("config", "comfy_config"):
            file = path / f"{name}.json"
            if path.is_dir() and file.is_file():
                self.metadata.setdefault(name, self._read_text(file))

    def _paths(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        files = [self.path / name for name in LEGACY_FILES]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{self.path.name}: {' and '.join(missing)} is missing. A legacy SVDQuant folder holds "
                f"{' and '.join(LEGACY_FILES)}."
            )
        return files

    def _open(self, file: Path) -> SafetensorsFile:
        return SafetensorsFile(file, file.name if file == self.path else f"{self.path.name}/{file.name}")

    def _read_text(self, file: Path) -> str:
        try:
            if file.stat().st_size > MAX_CONFIG_BYTES:
                raise CheckpointError(f"{self.path.name}/{file.name}: larger than any config file.")
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.path.name}/{file.name}: cannot be read ({error}).") from error

    @property
    def name(self) -> str:
        return self.path.name

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._places[name]
        return file.read(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # Mapping's own would read the tensor

    def dtype(self, name: str) -> str:
        """The dtype as the safetensors header names it, without reading the tensor: "BF16", "I8", ..."""
        file, stored = self._places[name]
        return file.dtype(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the tensor."""
        file, stored = self._places[name]
        return file.shape(stored)

    def release(self) -> None:
        """Let go of the pages read so far; tensors that are still in use stay valid."""
        for file in self._files:
            file.release()


def _prefix(names: list[str]) -> str:
    whole, *others = PREFIXES
    if any(name.startswith(whole) for name in names):  # beside it, a whole checkpoint holds other models
        return whole
    return next((p for p in others if names and all(name.startswith(p) for name in names)), "")


def read_json(checkpoint: Checkpoint, key: str) -> dict:
    """A JSON object from the metadata; {} where it is absent.

    Raises:
        CheckpointError: it is there and is not a JSON object.
    """
    text = checkpoint.metadata.get(key)
    return {} if text is None else parse_json(text, f"{checkpoint.name}: metadata {key}")


def parse_json(text: str, what: str) -> dict:
    """A JSON object from outside.

    Raises:
        CheckpointError: it is not JSON, or not an object; `what` says what it should be.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON ({error}). The file is damaged.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is not a JSON object. The file is damaged.")
    return value
