"""The file that holds recorded inputs: safetensors, a few tensors for each input, counts in the metadata.

<layer>.tokens        (T, K) bfloat16      a sample
<layer>.keys          (T,) float64         the random keys by which it was drawn; a calibration goes on with them
<layer>.mean_square   (K,) float32         over all tokens
<layer>.absmax        (K,) float32         over all tokens
<layer>.mean          (K,) float32         mean of x over all tokens; files of earlier versions lack it
<layer>.gram.A.B      (B-A, B-A) float32   Hessian: mean of x x^T over channels A...B, where recorded
metadata              format, version, counts {layer: [tokens, Hessian tokens, calls, dropped tokens]}, and words
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.container import MAX_NAME_LENGTH
from ..checkpoint.read_errors import printable, reason
from ..checkpoint.safetensors_file import SafetensorsFile
from ..errors import CheckpointError
from .statistics import InputStatistics

FORMAT = "svdquant-calibration"
VERSION = 1
KEYS = "keys"
RECORD_AGAIN = "Record it again."
MOST_COUNTED = 1 << 53  # tokens, which are counted in floats, too
HESSIAN = "gram"  # the Gram matrix of the inputs, which GPTQ takes for the Hessian
MEAN = "mean"
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_PARTS = ("tokens", KEYS, "mean_square", "absmax")


@dataclass
class Counts:
    """How much stands behind the statistics of one input.

    Args:
        tokens: behind the moments. hessian_tokens: behind the Hessians.
        calls: of the layer. dropped: tokens left out, since they were not finite.
    """

    tokens: int = 0
    hessian_tokens: int = 0
    calls: int = 0
    dropped: int = 0

    def to_list(self) -> list[int]:
        return list(astuple(self))

    @classmethod
    def from_list(cls, numbers: list[int]) -> "Counts":
        """Raises ValueError or TypeError where they are not four numbers of at least 0."""
        if len(numbers) != len(fields(cls)) or not all(type(n) is int and 0 <= n <= MOST_COUNTED for n in numbers):
            raise ValueError(f"{str(numbers)[:60]} are not the counts of an input")
        return cls(*numbers)


def _layer_name(name: str) -> str:
    if len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError(f"{name[:40]!a}... is no name of a layer")
    return name


class Calibration(Mapping[str, InputStatistics]):
    """A calibration file; statistics are read one layer at a time.

    Args:
        path: of a file that Collector.save wrote.

    Raises:
        CheckpointError: it is not one, or it is damaged.
    """

    def __init__(self, path: Path):
        self.path, self.shown = path, printable(str(path))
        self._file = SafetensorsFile(path, self.shown, "calibration", RECORD_AGAIN)
        self.metadata, self._keys = self._file.metadata, set(self._file.names())
        if self.metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.shown}: not a calibration file. Choose one that Save Calibration wrote, or record one."
            )
        if self.metadata.get("version") != str(VERSION):
            raise CheckpointError(
                f"{self.shown}: calibration version {self.metadata.get('version', '')[:20]!a}, expected {VERSION}. "
                "Update this pack, or record it again."
            )
        try:
            table = json.loads(self.metadata["counts"])
            self._counts = {_layer_name(name): Counts.from_list(numbers) for name, numbers in table.items()}
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.shown}: its table of inputs is damaged ({reason(error)}). {RECORD_AGAIN}"
            ) from error
        for name in self._counts:
            if not {f"{name}.{part}" for part in _PARTS} <= self._keys:
                raise CheckpointError(f"{self.shown}: the statistics of {name} are incomplete. Record it again.")

    def counts(self, name: str) -> Counts:
        """How much stands behind one input; a copy."""
        return replace(self._counts[name])

    def keys_of(self, name: str) -> Tensor:
        """(T,) float64, the key of each of its tokens."""
        keys = self._read(f"{name}.{KEYS}")
        self._file.release()
        return keys

    def channels(self, name: str) -> int:
        """Of one input, without reading it."""
        shape = self._file.shape(f"{name}.absmax")
        if len(shape) != 1:
            raise self._misfit(name)
        return shape[0]

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file is another one than when it was opened."""
        self._file.check_unchanged()

    def __getitem__(self, name: str) -> InputStatistics:
        counts, width = self._counts[name], self.channels(name)
        found = InputStatistics(
            tokens=self._read(f"{name}.tokens"),
            mean_square=self._read(f"{name}.mean_square"),
            absmax=self._read(f"{name}.absmax"),
            count=counts.tokens,
            hessians={span: self._read(key) for key, span in self._hessian_spans(name)},
            hessian_count=counts.hessian_tokens,
            mean=self._read(f"{name}.{MEAN}") if f"{name}.{MEAN}" in self._keys else None,
        )
        self._file.release()
        keys = self._file.shape(f"{name}.{KEYS}")
        fits = len(keys) == 1 and found.tokens.shape == (*keys, width) and found.mean_square.shape == (width,)
        fits &= found.mean is None or found.mean.shape == (width,)
        if not fits or any(h.shape != (b - a, b - a) or b > width for (a, b), h in found.hessians.items()):
            raise self._misfit(name)
        if bool((found.mean_square < 0).any()) or bool((found.absmax < 0).any()):
            raise CheckpointError(f"{self.shown}: the statistics of {name} are below zero. {RECORD_AGAIN}")
        return found

    def _hessian_spans(self, name: str) -> Iterator[tuple[str, tuple[int, int]]]:
        """Names of an input's Hessians, and the channels that they are of."""
        prefix = f"{name}.{HESSIAN}."
        for key in sorted(self._keys):
            if key.startswith(prefix):
                start, _, stop = key.removeprefix(prefix).partition(".")
                if not (start.isascii() and start.isdigit() and stop.isascii() and stop.isdigit()):
                    raise self._misfit(name)
                yield key, (int(start), int(stop))

    def _read(self, key: str) -> Tensor:
        tensor = self._file.read(key)
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{self.shown}: {key} is {self._file.dtype(key)}, expected a float. {RECORD_AGAIN}")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{self.shown}: {key}: the statistics are not finite. {RECORD_AGAIN}")
        return tensor

    def _misfit(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.shown}: the statistics of {name} do not fit each other. {RECORD_AGAIN}")

    def __contains__(self, name: object) -> bool:
        return name in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)
