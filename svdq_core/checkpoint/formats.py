"""The formats that a model can be written in, by the name that a user chooses, and how one is written."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ..models import Architecture
from ..quantized_model import QuantizedModel
from .comfy_write import ComfyFormat
from .dense_write import DenseFormat
from .nunchaku_write import NunchakuFormat
from .output import Output
from .packed_write import PackedFormat
from .stream import write_stream
from .writer import Format

FORMATS: dict[str, type[Format]] = {
    "nunchaku": NunchakuFormat,
    "comfy": ComfyFormat,
    "bf16": DenseFormat,
    "svdquant": PackedFormat,
}
# what the quantizer writes, by precision: no format of others holds 8-bit weights with smoothing and low-rank branch
QUANTIZED_FORMAT = {"int4": "nunchaku", "nvfp4": "nunchaku", "int8": "svdquant"}


def quantized_format(architecture: Architecture, precision: str) -> str:
    """What the quantizer writes: nunchaku's format, or this pack's for families of which no such file is known.

    Linears that a nunchaku file holds as one read one input, so the quantizer gives them one smoothing and one branch.
    """
    return "svdquant" if architecture.generic else QUANTIZED_FORMAT[precision]


def save_model(
    path: Path, model: QuantizedModel, form: Format, on_piece: Callable[[str], None] = lambda name: None
) -> None:
    """Write a model that is in memory, one tensor at a time.

    Args:
        on_piece: called with the name of each layer or tensor before it is written; what it raises ends the run.

    Raises:
        ArchitectureError: the format cannot hold one of the layers.
        SVDQuantError: the file cannot be written.
    """

    pieces = model.layers | model.plain
    announced = [output for host, entry in pieces.items() for output in form.outputs(host, entry)]
    form.finish()

    def made() -> Iterator[Output]:
        for host, entry in pieces.items():
            on_piece(host)
            yield from form.outputs(host, entry)

    write_stream(path, announced, form.metadata(model), made())
