"""What a traced forward tells about the Linears of a model: plain data, without any weights."""

from collections.abc import Iterator
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True)
class TracedLinear:
    """One Linear of a model and its input.

    Args:
        name: module name.
        out_features, in_features: of its weight.
        block: name of the repeated block that it lies in; "" outside.
        stack: name of the list of blocks that the block belongs to; "" outside.
        calls: in one step; 0 if the step does not run it.
        prepares: it runs while the prompt is prepared, once for all steps.
        grows_with_image: a larger picture gives it more rows. grows_with_text: a longer prompt does.
        is_context: blocks after this one read the same tensor by the same Linear: the prompt as it came.
        input_of: the first Linear of the block that reads this input; its own name if it is the first or only one.
        gelu: ranges of input channels that come right out of a GELU.
        gated: the input is a product with an activation, as of a SwiGLU.
        bypassed: others multiply with its weight, past the layer itself.
    """

    name: str
    out_features: int
    in_features: int
    block: str = ""
    stack: str = ""
    calls: int = 0
    prepares: bool = False
    grows_with_image: bool = False
    grows_with_text: bool = False
    is_context: bool = False
    input_of: str = ""
    gelu: tuple[Span, ...] = ()
    gated: bool = False
    bypassed: bool = False

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features


@dataclass(frozen=True)
class TracedModel:
    """All Linears of a model.

    Args:
        title: class of the model, for messages.
        parameters: of all of it, Linears or not.
        linears: those that ran first, in the order of their first call, then the others in that of the model.
    """

    title: str
    parameters: int
    linears: tuple[TracedLinear, ...]

    def __iter__(self) -> Iterator[TracedLinear]:
        return iter(self.linears)

    @property
    def blocks(self) -> list[str]:
        """Names of the repeated blocks in the order in which they run."""
        return list(dict.fromkeys(linear.block for linear in self.linears if linear.block))
