"""Training of one block's quantized layers against the block of the full-precision model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import SVDQuantError
from ..layer import QuantizedLayer
from .refine import Refined, RefineSpec, refine
from .refine_layer import make_trainable


class VisitedBlock(Protocol):
    """The block that the model's forwards have come to.

    Args:
        samples: how many.
    """

    samples: int

    def output(self, index: int, linears: Mapping[str, nn.Module]) -> Sequence[Tensor]:
        """What the block makes of a sample with these in place of its Linears; gradients go through."""
        ...

    def target(self, index: int) -> Sequence[Tensor]:
        """What it should make of it, tensor by tensor."""
        ...

    def gradients(self) -> AbstractContextManager:
        """Within which an output is made and its gradients are worked out."""
        ...


class BlockRuns(Protocol):
    """Forwards of a model, one for each sample, that wait before each of its blocks."""

    def advance(self) -> str | None:
        """Run on to the next block; its name, None at the end."""
        ...

    def here(self) -> VisitedBlock:
        """The block that they wait before."""
        ...

    def leave(self, linears: Mapping[str, nn.Module]) -> None:
        """What stands in place of the block's Linears for all that comes after it."""
        ...

    def close(self) -> None:
        """End the forwards."""
        ...


def refine_block(
    run: VisitedBlock,
    layers: Mapping[str, QuantizedLayer],
    spec: RefineSpec,
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Refined, dict[str, nn.Module]]:
    """Train the layers of one block.

    A block may have several outputs of any size, as the picture's and the text's tokens: each counts in units of its
    error at the beginning.

    Args:
        layers: host name -> layer, on the device of the run.
        dtype: that their products are computed in.
        on_step: as refine().

    Returns:
        What came of it, and the modules that compute it.

    Raises:
        SVDQuantError: as refine(); or the block's outputs are not those of its target.
    """
    modules = make_trainable(layers, dtype, spec.bits)
    units: list[Tensor] = []

    def errors(index: int) -> list[Tensor]:
        outputs, targets = run.output(index, modules), run.target(index)
        if [o.shape for o in outputs] != [t.shape for t in targets]:
            raise SVDQuantError(f"{name}: the block's outputs change from run to run; it cannot be refined.")
        return [(o.float() - t.float()).square().mean() for o, t in zip(outputs, targets, strict=True)]

    with torch.no_grad():
        every = range(0, run.samples, max(1, run.samples // 4))
        sums = [torch.stack(column).mean() for column in zip(*(errors(i) for i in every), strict=True)]
        units += [torch.where(s > 0, s, torch.ones_like(s)) for s in sums]
    if not bool(torch.isfinite(torch.stack(sums)).all()):
        raise SVDQuantError(
            f"{name}: its outputs are not finite in these inputs, so there is nothing to train towards. Record other "
            "inputs, or choose method best."
        )

    def loss(index: int) -> Tensor:
        found = errors(index)
        return torch.stack([e / u for e, u in zip(found, units, strict=True)]).mean()

    refined = refine(modules, loss, run.samples, spec, name, around=run.gradients, on_step=on_step)
    return refined, dict(modules)
