"""Writing a safetensors file piece by piece: the header first, then each tensor at its place as it is made."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import SVDQuantError
from .output import Output
from .safetensors_write import layout, write_block
from .save import replacing


def write_stream(path: Path, outputs: Sequence[Output], metadata: dict[str, str], made: Iterable[Output]) -> None:
    """Write a file whose tensors need not be in memory together.

    Args:
        outputs: every tensor of the file; their blocks are not called.
        metadata: key -> text.
        made: the same tensors once each, in any order; their blocks are written.

    Raises:
        SVDQuantError: no room, the folder cannot be written, or `made` is not what was announced. Then an older file of
            that name is left as it was and nothing new remains.
    """
    header, offsets, total = layout(outputs, metadata)
    announced = {output.name: (output.shape, output.dtype) for output in outputs}
    with replacing(path, len(header) + total) as part, part.open("wb") as file:
        file.write(header)
        for output in made:
            if announced.pop(output.name, None) != (output.shape, output.dtype):
                raise SVDQuantError(f"{path}: {output.name} is not as it was announced. Did the source file change?")
            file.seek(len(header) + offsets[output.name])
            written = sum(write_block(file, block) for block in output.blocks())
            if written != output.nbytes:
                raise SVDQuantError(f"{path}: {output.name} has {written} bytes, expected {output.nbytes}.")
        if announced:
            raise SVDQuantError(f"{path}: {len(announced)} tensors were announced and not made: {min(announced)}, ...")
        file.truncate(len(header) + total)
