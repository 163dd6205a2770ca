"""Before a long run: whether 4 bits suit the weights of a model at all, from rows of a few of its blocks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..padding import padded, widen
from .grid import runtime_arithmetic
from .model_plan import ModelPlan
from .round import round_by_absmax
from .spec import QuantSpec

ROWS = 128  # of each layer that are looked at
GROUP = 64
TOO_MUCH = 0.3  # of what a group holds beside its largest weight; normal numbers lose 0.11 in int4
BADLY = 0.05  # of the weights looked at: the model as a whole will quantize badly
NAMED = 6


@dataclass(frozen=True)
class Precheck:
    """What was found.

    Args:
        losses: layer -> what rounding alone costs its weights, relative, each group's largest left out.
        weights: layer -> how many it has.
        broken: layers whose weights are not finite.
    """

    losses: dict[str, float]
    weights: dict[str, int]
    broken: tuple[str, ...] = ()

    @property
    def hurt(self) -> list[str]:
        """Layers that lose too much, worst first."""
        return sorted((n for n in self.losses if self.losses[n] > TOO_MUCH), key=lambda n: -self.losses[n])

    @property
    def share(self) -> float:
        """Of the weights looked at that are in such layers."""
        return sum(self.weights[n] for n in self.hurt) / max(1, sum(self.weights.values()))

    def warnings(self) -> list[str]:
        """For the user, a sentence each; none where all is well."""
        lines = []
        if self.broken:
            lines.append(f"weights that are NaN or infinite: {_some(self.broken)}. Repair or re-download the model.")
        if not self.hurt:
            return lines
        worst = ", ".join(f"{name} ({self.losses[name]:.0%})" for name in self.hurt[:NAMED])
        more = ", ..." if len(self.hurt) > NAMED else ""
        if self.share > BADLY:
            lines.append(
                f"this model will quantize badly: {self.share:.0%} of the weights looked at are in layers of which "
                f"rounding loses more than {TOO_MUCH:.0%}: {worst}{more}. Take int8, or keep them in 16 bits."
            )
        else:
            lines.append(f"rounding hurts these layers most, and keep_16bit would spare them: {worst}{more}")
        return lines


def precheck(
    plan: ModelPlan,
    weights: Mapping[str, Tensor],
    spec: QuantSpec,
    spared: Callable[[str], bool] = lambda name: False,
) -> Precheck:
    """Look at the first, a middle and the last block of each kind.

    Columns are brought to one size first, as smoothing may: what is left is what no smoothing repairs.

    Args:
        weights: tensor name -> (N, K) any float dtype, on any device.
        spared: whether the user keeps a layer in 16 bits anyhow.
    """
    grid = runtime_arithmetic(spec.precision, spec.activations, False).weights
    looked_at = set(_sample_blocks(plan))
    losses, sizes, broken = {}, {}, []
    for layer in plan.quantized:
        if layer.block not in looked_at or layer.is_modulation or spared(layer.name):
            continue
        weight = weights[f"{layer.name}.weight"]
        rows = widen(weight[:: max(1, len(weight) // ROWS)][:ROWS].float(), padded(weight.shape[1]), 1)
        if not bool(torch.isfinite(rows).all()):
            broken.append(layer.name)
            continue
        sizes[layer.name] = layer.weights
        spread = rows.square().mean(dim=0).sqrt()
        rows = rows / torch.where(spread > 0, spread, torch.ones_like(spread))
        lost = (round_by_absmax(rows, grid, spec.scale_dtype) - rows).unflatten(-1, (-1, GROUP)).square()
        groups = rows.unflatten(-1, (-1, GROUP)).square()
        bulk = groups.sum(dim=-1) - groups.amax(dim=-1)
        losses[layer.name] = float((lost.sum(dim=-1).sum() / bulk.sum().clamp(min=1e-30)).sqrt())
    return Precheck(losses, sizes, tuple(broken))


def _sample_blocks(plan: ModelPlan) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for block in plan.blocks:
        kinds.setdefault(block.rpartition(".")[0], []).append(block)
    return [blocks[i] for blocks in kinds.values() for i in {0, len(blocks) // 2, len(blocks) - 1}]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
