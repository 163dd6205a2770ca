"""Whether a calibration fits a model, and which of its inputs say enough."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..checkpoint.read_errors import printable
from ..errors import SVDQuantError
from .calibration_file import Calibration
from .model_plan import ModelPlan
from .statistics import InputStatistics

FEWEST_TOKENS = 32  # of an input; of modulation layers, which need the mean alone, one will do
TOKENS_PER_CHANNEL = 4  # fewer say little about correlations
NAME_LETTERS = 40  # of a family's name in a file that are looked at
NAMED = 3  # layers that a sentence names
_CHUNK = 1 << 20


class FittedCalibration(Mapping[str, InputStatistics]):
    """The inputs of a calibration file that can be used for a model; statistics are read one layer at a time.

    Args:
        file: the calibration.
        plan: of the model. kind: of model, as calibrations name it.
        source: hash of the model's weights without LoRAs, as calibrations keep it; "" where it is not known.

    Raises:
        SVDQuantError: it was recorded on a model of another kind or other sizes.
    """

    def __init__(self, file: Calibration, plan: ModelPlan, kind: str, source: str = ""):
        self.file = file
        shapes = plan.shapes
        recorded = printable(file.metadata.get("architecture", kind)[:NAME_LETTERS])
        where = f"{printable(file.path.name)} was recorded on another model"
        if recorded != kind:
            raise SVDQuantError(f"{where}: a {recorded}, this is a {kind}. Record one with this model.")
        for name in file:
            expected = shapes[name][1] if name in shapes else None
            if expected != file.channels(name):
                found = "no such layer" if expected is None else f"{expected} inputs"
                raise SVDQuantError(
                    f"{where}: {name} has {file.channels(name)} inputs there, this model has {found}. Record one with "
                    "this model."
                )
        modulations = {layer.name for layer in plan.quantized if layer.is_modulation}
        counts = {name: file.counts(name).tokens for name in file}
        self._names = [n for n in file if counts[n] >= (1 if n in modulations else FEWEST_TOKENS)]
        self.notes = []
        if source and file.metadata.get("source", source) != source:
            self.notes.append("it was recorded on another model of the same sizes")
        self._note("were not recorded: inputs worked out from the weights", sorted(shapes.keys() - counts.keys()))
        self._note("have too few tokens: inputs worked out from the weights", sorted(counts.keys() - set(self._names)))
        scarce = [n for n in self._names if n not in modulations and counts[n] < TOKENS_PER_CHANNEL * shapes[n][1]]
        self._note(f"have fewer than {TOKENS_PER_CHANNEL} tokens a channel, record more prompts", scarce)

    def _note(self, what: str, layers: list[str]) -> None:
        if layers:
            named = ", ".join(layers[:NAMED]) + (", ..." if len(layers) > NAMED else "")
            self.notes.append(f"{len(layers)} layers {what} ({named})")

    def __getitem__(self, name: str) -> InputStatistics:
        if name not in self:
            raise KeyError(name)
        return self.file[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
