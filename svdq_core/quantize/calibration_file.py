"""The file that holds recorded inputs: safetensors, a few tensors for each input, counts in the metadata.

<layer>.tokens        (T, K) bfloat16      a sample
<layer>.keys          (T,) float64         the random keys by which it was drawn; a calibration goes on with them
<layer>.mean_square   (K,) float32         over all tokens
<layer>.absmax        (K,) float32         over all tokens
<layer>.gram.A.B      (B-A, B-A) float32   Hessian: mean of x x^T over channels A...B, where recorded
metadata              format, version, counts {layer: [tokens, Hessian tokens, calls, dropped tokens]}, and words
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .statistics import InputStatistics

FORMAT = "svdquant-calibration"
VERSION = 1
KEYS = "keys"
HESSIAN = "gram"  # the Gram matrix of the inputs, which GPTQ takes for the Hessian
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


class Calibration(Mapping[str, InputStatistics]):
    """A calibration file; statistics are read one layer at a time.

    Args:
        path: of a file that Collector.save wrote.

    Raises:
        CheckpointError: it is not one, or it is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                self._keys = set(file.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable calibration file ({error}). Record it again.") from error
        if self.metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: not a calibration file. Choose one that Save Calibration wrote, or record one."
            )
        if self.metadata.get("version") != str(VERSION):
            raise CheckpointError(
                f"{path}: calibration version {self.metadata.get('version')}, expected {VERSION}. "
                "Update this pack, or record it again."
            )
        try:
            table = json.loads(self.metadata["counts"])
            self._counts = {name: Counts(*(int(n) for n in numbers)) for name, numbers in table.items()}
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: its table of inputs is damaged. Record it again.") from error
        for name in self._counts:
            if not {f"{name}.{part}" for part in _PARTS} <= self._keys:
                raise CheckpointError(f"{path}: the statistics of {name} are incomplete. Record it again.")

    def counts(self, name: str) -> Counts:
        """How much stands behind one input; a copy."""
        return replace(self._counts[name])

    def keys_of(self, name: str) -> Tensor:
        """(T,) float64, the key of each of its tokens."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(f"{name}.{KEYS}")

    def channels(self, name: str) -> int:
        """Of one input, without reading it."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_slice(f"{name}.absmax").get_shape()[0]

    def __getitem__(self, name: str) -> InputStatistics:
        counts = self._counts[name]
        prefix = f"{name}.{HESSIAN}."
        with safe_open(self.path, framework="pt") as file:
            hessians = {}
            for key in sorted(self._keys):
                if key.startswith(prefix):
                    start, stop = map(int, key.removeprefix(prefix).split("."))
                    hessians[start, stop] = file.get_tensor(key)
            found = InputStatistics(
                tokens=file.get_tensor(f"{name}.tokens"),
                mean_square=file.get_tensor(f"{name}.mean_square"),
                absmax=file.get_tensor(f"{name}.absmax"),
                count=counts.tokens,
                hessians=hessians,
                hessian_count=counts.hessian_tokens,
            )
            keys = file.get_slice(f"{name}.{KEYS}").get_shape()
        width = found.channels
        shapes_fit = found.tokens.ndim == 2 and found.tokens.shape == (*keys, width) and found.absmax.shape == (width,)
        if not shapes_fit or any(g.shape != (b - a, b - a) for (a, b), g in hessians.items()):
            raise CheckpointError(f"{self.path}: the statistics of {name} do not fit each other. Record it again.")
        if not all(bool(torch.isfinite(t).all()) for t in (found.mean_square, found.absmax)):
            raise CheckpointError(f"{self.path}: the statistics of {name} are not finite. Record it again.")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._counts

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)
