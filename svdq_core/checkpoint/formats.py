"""The formats that a model can be written in, by the name that a user chooses, and how one is written."""

from collections.abc import Iterator
from pathlib import Path

from ..model import QuantizedModel
from .comfy_write import ComfyFormat
from .dense_write import DenseFormat
from .nunchaku_write import NunchakuFormat
from .output import Output
from .stream import write_stream
from .writer import Format

FORMATS: dict[str, type[Format]] = {"nunchaku": NunchakuFormat, "comfy": ComfyFormat, "bf16": DenseFormat}


def save_model(path: Path, model: QuantizedModel, form: Format) -> None:
    """Write a model that is in memory, one tensor at a time.

    Raises:
        ArchitectureError: the format cannot hold one of the layers.
        SVDQuantError: the file cannot be written.
    """

    def outputs() -> Iterator[Output]:
        for host, entry in (model.layers | model.plain).items():
            yield from form.outputs(host, entry)

    write_stream(path, list(outputs()), form.metadata(model), outputs())
