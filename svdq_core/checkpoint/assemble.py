"""One host Linear out of the layers of a checkpoint."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..arena import Arena
from ..errors import CheckpointError
from ..layer import Part, QuantizedLayer
from ..stack import stack_columns, stack_rows

NamedPart = tuple[str, Part, Tensor | None]  # name in the checkpoint, the part, its bias


def combine(
    file: str,
    stack: str,
    parts: Sequence[NamedPart],
    *,
    arena: Arena | None = None,
    has_bias: bool = True,
    input_name: str = "",
) -> QuantizedLayer:
    """Stack the layers of a checkpoint that make one host Linear.

    Args:
        file: for messages.
        stack: "rows" or "columns"; see LinearMap.
        arena: where their tensors lie.
        has_bias: whether ComfyUI's Linear has a bias.
        input_name: see QuantizedLayer.input.

    Raises:
        CheckpointError: they do not fit each other, or a bias is missing or too many.
    """
    shared = "in_features" if stack == "rows" else "out_features"
    if len({getattr(part, shared) for _, part, _ in parts}) > 1:
        sizes = " and ".join(f"{name}: {getattr(part, shared)}" for name, part, _ in parts)
        raise CheckpointError(
            f"{file}: layers that feed one Linear disagree on {shared} ({sizes}). The file is damaged."
        )
    if not has_bias:
        parts = [(name, part, _without_zeros(bias, f"{file}: {name}")) for name, part, bias in parts]
    # of summed layers only the last one needs its bias
    for name, _, bias in (parts if stack == "rows" else parts[-1:]) if has_bias else ():
        if bias is None:
            raise CheckpointError(f"{file}: {name}: bias is missing. The file is incomplete; download it again.")
    stacked = stack_rows if stack == "rows" else stack_columns
    layer = stacked([part for _, part, _ in parts], [bias for _, _, bias in parts])
    return replace(layer, arena=arena, input=input_name)


def _without_zeros(bias: Tensor | None, where: str) -> None:
    """nunchaku's older files have a bias of zeros where there is none."""
    if bias is not None and bool((bias != 0).any()):
        raise CheckpointError(
            f"{where}: has a bias, and ComfyUI's model has no place for one. The file is damaged or of another model."
        )
