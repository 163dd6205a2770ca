"""Whether the shapes of a model's tensors fit its family, and each other, while they come in one by one.

What a family's description leaves open is the same wherever its letter stands; all blocks of a kind have the same
shapes; a bias has as many numbers as its weight has rows. ComfyUI would find out, but what only converts would not.
"""

from ..errors import CheckpointError
from ..models import Architecture

Shape = tuple[int, ...]


class ShapeCheck:
    """What is known of the sizes so far.

    Args:
        architecture: of the model.
    """

    def __init__(self, architecture: Architecture):
        self.architecture = architecture
        self._widths: dict[str, int] = {}  # features of the residual stream, by kind of block
        self._outputs: dict[str, int] = {}  # rows of the weights so far, by module
        self._open: dict[str, tuple[int, str]] = {}  # letter -> size, and the tensor that has it
        self._blocks: dict[tuple[str, str], tuple[Shape, str]] = {}  # kind of block, name in it -> shape, its first one

    def check(self, name: str, shape: Shape, where: str) -> None:
        """Raise CheckpointError where a tensor does not fit.

        Args:
            name: of the host's tensor; of a Linear that of its weight. where: file and tensor, for the message.
        """
        module, _, end = name.rpartition(".")
        place = self.architecture.find_block(name)
        kind = None if place is None else place.block.host
        self._note_width(module, kind, shape)
        first = next(iter(self._widths.values()), 1)
        width = first if kind is None else self._widths.get(kind, first)
        expected = self.architecture.shape_of(name, width)
        if end == "weight" and shape:
            self._outputs[module] = shape[0]
        elif end == "bias" and module in self._outputs:
            expected = (self._outputs[module],)
        if expected is not None and not _fits(shape, expected):
            raise self._error(where, shape, expected, f"in a {self.architecture.title} model of width {width}")
        if expected is not None:
            self._check_open(name, shape, where)
        if place is not None:
            other, first_name = self._blocks.setdefault((place.block.host, place.rest), (shape, name))
            if other != shape:
                raise self._error(where, shape, other, f"as {first_name} has, which is the same in another block")

    def _note_width(self, module: str, kind: str | None, shape: Shape) -> None:
        linear = self.architecture.find_linear(module)
        columns = linear.shape[1] if linear is not None and len(shape) == 2 else None
        if kind is not None and kind not in self._widths and columns:
            self._widths[kind] = max(int(shape[1] / columns), 1)

    def _check_open(self, name: str, shape: Shape, where: str) -> None:
        symbols = self.architecture.symbols_of(name)
        for symbol, size in zip(symbols, shape, strict=False):
            if not self.architecture.is_open(symbol):
                continue
            other, first_name = self._open.setdefault(symbol, (size, name))
            if other != size:
                expected = tuple(other if s == symbol else n for s, n in zip(symbols, shape, strict=True))
                raise self._error(where, shape, expected, f"since {first_name} has {other}")

    @staticmethod
    def _error(where: str, shape: Shape, expected: tuple[int | None, ...], why: str) -> CheckpointError:
        if len(expected) == len(shape) == 2:
            found = f"{shape[1]} inputs and {shape[0]} outputs"
            wanted = f"{expected[1] or 'any'} and {expected[0] or 'any'}"
        else:
            found, wanted = f"shape {shape}", "(" + ", ".join(str(e or "any") for e in expected) + ")"
        return CheckpointError(
            f"{where} has {found}, expected {wanted} {why}. The file is damaged or of another model."
        )


def _fits(shape: Shape, expected: tuple[int | None, ...]) -> bool:
    return len(expected) == len(shape) and all(e in (None, n) for e, n in zip(expected, shape, strict=True))
