"""Pieces of a layer that a file holds in one, kept until all of them are there."""

from typing import TypeVar

from ..errors import ArchitectureError
from ..models import Architecture, LinearMap

Piece = TypeVar("Piece")


class WaitingPieces:
    """What has come of each layer so far.

    Args:
        architecture: of the model.
    """

    def __init__(self, architecture: Architecture):
        self.architecture = architecture
        self._waiting: dict[tuple[str, str], dict[str, object]] = {}

    def put(self, source: str, end: str, host: str, linear: LinearMap, piece: Piece) -> list[Piece] | None:
        """Take a piece; all of them in the order of their rows as soon as they are there, else None.

        Args:
            source: full name of the layer in the file. end: what of it, "layer", "weight" or "bias".
            host: full name of the Linear of ComfyUI's model that the piece is.
        """
        place = self.architecture.find_block(host)
        assert place is not None  # only Linears of blocks are pieces
        waiting = self._waiting.setdefault((source, end), {})
        waiting[linear.host] = piece
        siblings = [sibling.host for sibling in place.block.siblings(linear)]
        if any(name not in waiting for name in siblings):
            return None
        del self._waiting[source, end]
        return [waiting[name] for name in siblings]  # type: ignore[misc]

    def check_empty(self) -> None:
        """Raise ArchitectureError where a layer has only some of its pieces."""
        for (source, end), pieces in self._waiting.items():
            kind = "quantized" if end == "layer" else f"there in 16 bits ({end})"
            raise ArchitectureError(
                f"Of the Linears that {source} consists of in a nunchaku file only {', '.join(pieces)} are {kind}. "
                "Write another format."
            )
