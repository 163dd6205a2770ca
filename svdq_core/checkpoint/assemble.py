"""One host Linear out of the layers of a checkpoint."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..arena import Arena
from ..errors import CheckpointError
from ..layer import Part, QuantizedLayer
from ..stack import stack_columns, stack_rows

NamedPart = tuple[str, Part, Tensor | None]  # name in the checkpoint, the part, its bias


def combine(file: str, stack: str, parts: Sequence[NamedPart], arena: Arena | None = None) -> QuantizedLayer:
    """Stack the layers of a checkpoint that make one host Linear.

    Args:
        file: for messages.
        stack: "rows" or "columns"; see LinearMap.
        arena: where their tensors lie.

    Raises:
        CheckpointError: they do not fit each other, or a bias is missing.
    """
    shared = "in_features" if stack == "rows" else "out_features"
    if len({getattr(part, shared) for _, part, _ in parts}) > 1:
        sizes = " and ".join(f"{name}: {getattr(part, shared)}" for name, part, _ in parts)
        raise CheckpointError(
            f"{file}: layers that feed one Linear disagree on {shared} ({sizes}). The file is damaged."
        )
    # the Linears of all families here have biases; of summed layers only the last one needs it
    for name, _, bias in parts if stack == "rows" else parts[-1:]:
        if bias is None:
            raise CheckpointError(f"{file}: {name}: bias is missing. The file is incomplete; download it again.")
    stacked = stack_rows if stack == "rows" else stack_columns
    return replace(stacked([part for _, part, _ in parts], [bias for _, _, bias in parts]), arena=arena)
