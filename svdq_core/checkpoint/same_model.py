"""Whether a second file is of the model that the first one was quantized from: shapes cannot tell it, numbers can.

Quantizing leaves an error whose size follows from a layer's own codes and scales: each code stands for a cell, in which
the weight lies anywhere. A weight of the same model is as far away as that says; one of another model much farther.
Where a recipe rounds to the nearest code, nothing lies outside the cells, and that is proof; GPTQ puts a part of the
weights outside, so that outside them the size of the error decides, and the doubtful is said and not refused.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.format import E2M1_VALUES
from ...kernels.part_weights import dequantize
from ..apply_layer import dense_weight
from ..errors import CheckpointError
from ..layer import Part, QuantizedLayer
from ..stack import slice_rows
from .container import Checkpoint

logger = logging.getLogger("svdquant")

OTHER_MODEL = 3.0  # times the error that rounding makes; GPTQ makes less than twice of it
DOUBTFUL = 1.6
OUTSIDE = 0.02  # of the weights may lie outside their cells by rounding of smoothing and branch to 16 bits
ROUNDED = 1.1  # times its half a cell may seem to be, by the same rounding
MOST_ROWS = 1024  # of a layer
TINY = 1e-30
DTYPES = ("BF16", "F16", "F32")
SEARCHED = 1000  # characters of a text that may name the model
_ONE = {"int4": 0x11, "nvfp4": 0x22}  # two codes that stand for 1


@dataclass(frozen=True)
class Distance:
    """How far a dense weight is from a quantized layer.

    Args:
        relative: to the size of the weight. of_rounding: to the error that rounding makes.
        outside: share of the weights beyond the cells of their codes.
    """

    relative: float
    of_rounding: float
    outside: float


def distance(layer: QuantizedLayer, weight: Tensor) -> Distance:
    """Between a layer of int4 or nvfp4 parts and a dense (N, K) weight; of many rows the first ones are looked at."""
    apart = expected = outside = size = 0.0
    count = 0
    for whole in layer.parts:
        rows = min(whole.out_features, MOST_ROWS)
        cut = slice_rows(whole, 0, rows)
        part = Part(cut.scheme, (0, rows), (0, whole.in_features), cut.act_unsigned, cut.tensors)
        theirs = weight[whole.rows[0] : whole.rows[0] + rows, slice(*whole.columns)].float()
        gap = (theirs - dense_weight(QuantizedLayer(part.in_features, rows, (part,)))).abs()
        variances, reaches = _cells(part)
        apart, expected = apart + float(gap.square().sum()), expected + float(variances.sum())
        outside, count = outside + float((gap > ROUNDED * reaches).sum()), count + gap.numel()
        size += float(theirs.square().sum())
    return Distance((apart / max(size, TINY)) ** 0.5, (apart / max(expected, TINY)) ** 0.5, outside / count)


def _cells(part: Part) -> tuple[Tensor, Tensor]:
    """For each code, in the weight's own coordinates: the variance of what it stands for, and the farthest of it."""
    ones = {**part.tensors, "qweight": torch.full_like(part["qweight"], _ONE[part.scheme])}
    scales = dequantize(ones, part.scheme)
    steps = scales / part["smooth_factor"].float()
    if part.scheme == "int4":
        return steps.square() / 12, steps / 2
    grid = torch.tensor(E2M1_VALUES)
    above = torch.cat([(grid[1:] - grid[:-1]) / 2, torch.ones(1)])  # half of the way to the next value
    below = torch.cat([above[:1], above[:-1]])
    variance, reach = (below**3 + above**3) / (3 * (below + above)), torch.maximum(below, above)
    magnitude = (dequantize(part.tensors, part.scheme) / scales.clamp(min=TINY)).abs()
    code = torch.bucketize(magnitude, (grid[1:] + grid[:-1]) / 2)
    return steps.square() * variance[code], steps * reach[code]


class SameModel:
    """What is looked at while a first file is read.

    Args:
        first, second: the two files. hosts: host names of the first one's pieces.
        members: for each of several models that share all shapes, the words by which texts name it.
    """

    def __init__(
        self, first: Checkpoint, second: Checkpoint, hosts: Iterable[str], members: tuple[tuple[str, ...], ...]
    ):
        self.first, self.second, self.notes = first, second, []
        found = [h for h in hosts if f"{h}.weight" in second and second.dtype(f"{h}.weight") in DTYPES]
        self._layers = self._choose(found)
        self._looked: list[Distance] = []
        self._equal = 0  # unquantized tensors that both files have
        self._named = self._contradiction(members)

    def _choose(self, hosts: list[str]) -> set[str]:
        """One layer of each kind, whose rows might be in another order, and a few of the smallest from everywhere."""
        kinds: dict[str, str] = {}
        for host in hosts:
            kinds.setdefault(".".join(host.split(".")[-2:]), host)
        sizes = {host: torch.Size(self.second.shape(f"{host}.weight")).numel() for host in hosts}
        small = [host for host in hosts if sizes[host] == min(sizes.values())]
        return {*kinds.values(), *(small[place] for place in (len(small) // 2, -1) if small)}

    def look(self, host: str, entry: QuantizedLayer | Tensor) -> None:
        """Compare a piece of the first file.

        Raises:
            CheckpointError: the second file has it, and it is of another model.
        """
        if isinstance(entry, Tensor):
            self._look_at_plain(host, entry)
        elif host in self._layers:
            self._look_at_layer(host, entry)

    def _look_at_layer(self, host: str, layer: QuantizedLayer) -> None:
        name, first, second = f"{host}.weight", self.first.name, self.second.name
        if self.second.shape(name) != (layer.out_features, layer.in_features):
            raise CheckpointError(
                f"{second}: {name} has shape {self.second.shape(name)}, and {first} has "
                f"({layer.out_features}, {layer.in_features}). They are not of one model."
            )
        if any(part.scheme not in _ONE for part in layer.parts):
            return
        found = distance(layer, self.second[name])
        if not found.of_rounding < OTHER_MODEL:
            raise CheckpointError(
                f"{second}: {name} is {found.relative:.2f} of its size away from what {first} has, "
                f"{found.of_rounding:.1f} times what quantizing makes. They share their shapes and are of two models: "
                "take the second file of the model that was quantized. (Rows in another order would look the same.)"
            )
        self._looked.append(found)

    def _look_at_plain(self, host: str, tensor: Tensor) -> None:
        if host not in self.second or self.second.dtype(host) not in DTYPES or host.endswith("inv_freq"):
            return
        theirs, first, second = self.second[host], self.first.name, self.second.name
        if theirs.shape != tensor.shape or not torch.allclose(theirs.float(), tensor.float(), rtol=0.01, atol=1e-3):
            raise CheckpointError(
                f"{second}: {host} differs from what {first} has. They are of two models: take the second file of the "
                "model that was quantized."
            )
        self._equal += 1

    def finish(self) -> None:
        """Say what is left in doubt, in self.notes and the log.

        Raises:
            CheckpointError: the files' names or metadata speak of two models, and the numbers do not prove otherwise.
        """
        proven = bool(self._looked) and all(f.outside < OUTSIDE and f.of_rounding < DOUBTFUL for f in self._looked)
        worst = max((found.of_rounding for found in self._looked), default=0.0)
        first, second = self.first.name, self.second.name
        if self._named and not proven:
            raise CheckpointError(
                f"{second}: it is said to be {self._named[1]}, and {first} to be {self._named[0]}. The two share all "
                "shapes and are two models: take the second file of the model that was quantized, or rename the one "
                "whose name is wrong."
            )
        if worst > DOUBTFUL:
            self.notes.append(
                f"{second} is {worst:.1f} times as far from {first} as rounding makes it: they may be of two models "
                "that share all shapes. If pictures are noise, take the other second file."
            )
        elif not self._looked and not self._equal:
            self.notes.append(
                f"{second} has none of the layers of {first}, so whether both are of one model could not be checked."
            )
        for note in self.notes:
            logger.warning("%s", note)

    def _contradiction(self, members: tuple[tuple[str, ...], ...]) -> tuple[str, str] | None:
        """What the first and the second file are said to be, where each names one model and they differ."""
        said = [_named(checkpoint, members) for checkpoint in (self.first, self.second)]
        return (said[0], said[1]) if all(said) and said[0] != said[1] else None


def _named(checkpoint: Checkpoint, members: tuple[tuple[str, ...], ...]) -> str:
    """The one model that a file's name or metadata names, by its first word; "" for none or several."""
    texts = [checkpoint.name, *(text[:SEARCHED] for text in checkpoint.metadata.values())]
    lowered = " ".join(texts).lower()
    found = [words[0] for words in members if any(word in lowered for word in words)]
    return found[0] if len(found) == 1 else ""
