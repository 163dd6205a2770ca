"""What all formats that can be written have in common."""

from collections.abc import Iterator

from torch import Tensor

from ..layer import QuantizedLayer
from ..models import Architecture
from ..quantized_model import QuantizedModel
from .metadata import provenance
from .output import Output
from .read_plan import Entry


class Format:
    """One format, for one model.

    Args:
        architecture: of the model.
        exact: keep, beside a tensor that this format rounds, the exact one, so that nothing is lost on the way back.
        source: name of the file that the model comes from, for its provenance; "" if it was made here.
        strict: nothing that only this pack reads; what the format rounds is then lost on the way back.
    """

    title = ""

    def __init__(self, architecture: Architecture, exact: bool = False, source: str = "", strict: bool = False):
        self.architecture, self.exact, self.source, self.strict = architecture, exact and not strict, source, strict
        self.notes: list[str] = []  # what a user should know about the file, one sentence each

    def outputs(self, host: str, entry: Entry) -> Iterator[Output]:
        """The tensors of the file that one piece of the model becomes.

        Raises:
            ArchitectureError: the format cannot hold it; the message says why.
        """
        if isinstance(entry, QuantizedLayer):
            yield from self.layer_outputs(host, entry)
        else:
            yield from self.plain_outputs(host, entry)

    def layer_outputs(self, host: str, layer: QuantizedLayer) -> Iterator[Output]:
        raise NotImplementedError

    def plain_outputs(self, host: str, tensor: Tensor) -> Iterator[Output]:
        raise NotImplementedError

    def finish(self) -> None:
        """Called when all pieces of the model went through outputs().

        Raises:
            ArchitectureError: pieces are missing that the format holds together with others.
        """

    def metadata(self, outline: QuantizedModel) -> dict[str, str]:
        """The metadata of the file.

        Args:
            outline: the model; its tensors may lie on the meta device, only shapes and dtypes count.
        """
        return outline.metadata | provenance(self.source)

    def note(self, sentence: str) -> None:
        """Keep a sentence for the user, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)
