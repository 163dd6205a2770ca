"""Opening a file or folder: tensors by name, read only when asked for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from torch import Tensor

from ..arena import Staging
from ..errors import CheckpointError
from ..models.layer_maps import Span
from .pickle_file import Flag, PickleFile
from .read_errors import printable, reading
from .safetensors_file import SafetensorsFile

LEGACY_FILES = ("transformer_blocks.safetensors", "unquantized_layers.safetensors")  # older nunchaku
NATIVE_FILES = ("model.pt", "scale.pt")  # deepcompressor's own output; the next two may be absent
NATIVE_OPTIONAL_FILES = ("smooth.pt", "branch.pt")
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
DIFFUSERS_INDEX = f"{DIFFUSERS_FILE}.index.json"
DIFFUSERS_FOLDER = "transformer"  # of a whole pipeline

# what others put in front of names
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.model.", "model.")
SIDECAR_SUFFIX = ".config.yaml"
MAX_CONFIG_BYTES = 10_000_000
MAX_NAME_LENGTH = 300  # names end up in messages


class Checkpoint(Mapping[str, Tensor]):
    """Tensors by name, without the prefix that other tools put in front of all of them.

    Args:
        path: a .safetensors file, or a folder: nunchaku's older one, one that diffusers saved, or deepcompressor's own
            output, whose tensors are named FILE/NAME.
        base: a second file, with everything that is not quantized, where `path` does not have it.

    Raises:
        CheckpointError: the path is none of these, is damaged, or is a kind of file that cannot hold SVDQuant layers.
    """

    def __init__(self, path: Path, base: Path | None = None):
        self.path = path
        self.base = None if base is None else Checkpoint(base)
        with reading(self.name):
            self._open_all()

    def _open_all(self) -> None:
        self.metadata: dict[str, str] = {}
        self.staging = Staging()
        self.flags: dict[str, Flag] = {}  # plain values among the tensors of a .pt file
        self._places: dict[str, tuple[SafetensorsFile | PickleFile, str]] = {}
        self.prefix = ""  # that was taken off its names
        self._files = [self._open(file) for file in self._paths()]
        for file in self._files:
            names = file.names()
            prefix = self.prefix = _prefix(names) if isinstance(file, SafetensorsFile) else ""
            for name in names:
                if not name.startswith(prefix):
                    continue  # a text encoder or autoencoder in the same file
                short = name.removeprefix(prefix)
                if len(short) > MAX_NAME_LENGTH or not short.isprintable():
                    raise CheckpointError(
                        f"{self.name}: {short[:40]!a}... is no tensor name of any model. The file is damaged."
                    )
                if short in self._places:
                    raise CheckpointError(f"{self.name}: tensor {short} is stored twice. The file is damaged.")
                self._places[short] = file, name
            self.metadata |= file.metadata
            self.flags |= getattr(file, "flags", {})
        self._read_configs()

    @property
    def name(self) -> str:
        """Of the file or folder, printable."""
        return printable(self.path.name)

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._places[name]
        return file.read(stored)

    def read_staged(self, name: str, spans: Sequence[Span] = ((0, 1),), count: int = 1) -> Tensor:
        """A tensor, or pieces of it, in memory that this thread takes again after staging.restart().

        Args:
            spans: (first, stop) of the pieces of its bytes that are wanted, one after the other; all of them: in one.
            count: of equal pieces that follow each other.

        Returns:
            The tensor in its shape; of some pieces, flat.
        """
        file, stored = self._places[name]
        if isinstance(file, PickleFile):
            raise CheckpointError(f"{self.name}: {name} lies in a .pt file, which is not read in pieces.")
        pieces = sum(stop - first for first, stop in spans)
        out = self.staging.take(file.nbytes_of(stored) // count * pieces)
        return file.read(stored, out) if count == 1 else file.read_pieces(stored, spans, count, out)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # Mapping's own would read the tensor

    def dtype(self, name: str) -> str:
        """The dtype as the header names it ("BF16", "I8", ...; of a .pt file as torch does), without reading."""
        file, stored = self._places[name]
        return file.dtype(stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the tensor."""
        file, stored = self._places[name]
        return file.shape(stored)

    @property
    def files(self) -> list[Path]:
        """The files it consists of, config files aside."""
        return [file.path for file in self._files] + ([] if self.base is None else self.base.files)

    def sidecar(self) -> str:
        """The text of NAME.config.yaml beside a single file NAME.safetensors, or ""; diffuse-compressor writes one."""
        file = self.path.with_suffix(SIDECAR_SUFFIX)
        return "" if self.path.is_dir() or not file.is_file() else self._read_text(file)

    def check_unchanged(self) -> None:
        """Raise CheckpointError, which says which, if one of the files is another one than when it was opened."""
        for file in self._files:
            file.check_unchanged()
        if self.base is not None:
            self.base.check_unchanged()

    def release(self) -> None:
        """Close the files until the next read."""
        for file in self._files:
            file.release()
        if self.base is not None:
            self.base.release()

    def _paths(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        inner = self.path / DIFFUSERS_FOLDER
        folder = inner if inner.is_dir() and not (self.path / LEGACY_FILES[0]).is_file() else self.path
        if all((folder / name).is_file() for name in LEGACY_FILES):
            return [folder / name for name in LEGACY_FILES]
        if all((folder / name).is_file() for name in NATIVE_FILES):
            optional = [folder / name for name in NATIVE_OPTIONAL_FILES if (folder / name).is_file()]
            return [folder / name for name in NATIVE_FILES] + optional
        if (folder / DIFFUSERS_INDEX).is_file():
            return self._shards(folder / DIFFUSERS_INDEX)
        if (folder / DIFFUSERS_FILE).is_file():
            return [folder / DIFFUSERS_FILE]
        found = [name for name in (*LEGACY_FILES, *NATIVE_FILES) if (folder / name).is_file()]
        begun = NATIVE_FILES if found and found[0] in NATIVE_FILES else LEGACY_FILES
        missing = " and ".join(name for name in begun if name not in found)
        raise CheckpointError(
            f"{self.name}: {missing} is missing. A folder holds either {' and '.join(LEGACY_FILES)} (older "
            f"nunchaku), or {DIFFUSERS_FILE} and config.json (diffusers), or "
            f"{', '.join(NATIVE_FILES + NATIVE_OPTIONAL_FILES)} (deepcompressor)."
        )

    def _shards(self, index: Path) -> list[Path]:
        weight_map = parse_json(self._read_text(index), f"{self.name}/{index.name}").get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{self.name}/{index.name}: weight_map is missing. The file is damaged.")
        if not weight_map:
            raise CheckpointError(f"{self.name}/{index.name}: weight_map names no file. The file is damaged.")
        names = sorted(set(weight_map.values()))
        for name in names:
            if PurePosixPath(name).name != name or name in ("", ".", "..") or "\\" in name or not name.isprintable():
                raise CheckpointError(f"{self.name}/{index.name}: {name[:100]!a} is no file of this folder. Refused.")
        return [index.parent / name for name in names]

    def _open(self, file: Path) -> SafetensorsFile | PickleFile:
        inner = "" if file == self.path else f"/{printable(file.relative_to(self.path).as_posix())}"
        shown = self.name + inner
        if file.suffix == ".pt" and file != self.path:
            return PickleFile(file, shown)
        return SafetensorsFile(file, shown)

    def _read_configs(self) -> None:
        """The config files of a folder as metadata; those beside a single file only where they speak of it."""
        folder = self._files[0].path.parent
        for name in ("config", "comfy_config"):
            file = folder / f"{name}.json"
            if self.path.is_dir() and file.is_file():
                self.metadata.setdefault(name, self._read_text(file))
        if not self.path.is_dir() and (folder / "config.json").is_file() and "config" not in self.metadata:
            text = self._read_text(folder / "config.json")
            if any(f"{target}.qweight" in self for target in lite_targets(text)):
                self.metadata["config"] = text

    def _read_text(self, file: Path) -> str:
        shown = f"{self.name}/{printable(file.name)}"
        try:
            if file.stat().st_size > MAX_CONFIG_BYTES:
                raise CheckpointError(f"{shown}: larger than any config file.")
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{shown}: cannot be read ({error}).") from error


def lite_targets(config: str) -> list[str]:
    """The modules that a diffusers config.json lists as quantized by Nunchaku Lite; [] for any other config."""
    try:
        quantization = json.loads(config)["quantization_config"]
        if quantization["quant_method"] != "nunchaku_lite":
            return []
        kinds = [quantization.get("svdq_w4a4") or {}, quantization.get("awq_w4a16") or {}]
        return [str(target) for kind in kinds for target in kind.get("targets", [])]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return []


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
