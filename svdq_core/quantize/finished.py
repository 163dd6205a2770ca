"""One Linear of a model after its turn: quantized, or left in 16 bits."""

from dataclasses import dataclass, field

from torch import Tensor

from ..layer import QuantizedLayer
from .one_layer import PartReport


@dataclass(frozen=True)
class Finished:
    """What became of one host Linear; tensors lie on the device of the run.

    Args:
        name: its module name.
        layer: quantized; None where it stays in 16 bits.
        plain: host tensor name -> tensor, where it stays in 16 bits.
        reports: one for each part.
        kept: one sentence why it stays in 16 bits, "" otherwise.
    """

    name: str
    layer: QuantizedLayer | None = None
    plain: dict[str, Tensor] = field(default_factory=dict, repr=False)
    reports: tuple[PartReport, ...] = ()
    kept: str = ""

    @property
    def pieces(self) -> dict[str, QuantizedLayer | Tensor]:
        """What a format writes: host name -> layer or tensor."""
        return {**self.plain} if self.layer is None else {self.name: self.layer}
