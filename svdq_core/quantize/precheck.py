"""Before a long run: whether 4 bits suit the weights of a model at all, from rows of a few of its blocks.

What rounding loses beside the largest weight of each group, columns brought to one size as smoothing may, tells the
error that a layer will have, low-rank branch and 4-bit activations included: see EXPECTED.
"""

import statistics
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
# precision -> (a, b): the relative output error of a layer at W4A4 on inputs without correlations is a + b * loss.
# Fitted to 512 x 1024 weights, rank 32, with heavy tails (Student's t, 10 to 2 degrees of freedom) and with outliers of
# 10 and 20 in 0.2 to 10 % of the places; int4: losses of 0.11 to 0.33, errors of 0.128 to 0.197, none off by more than
# 0.011; one of 30 in every group, within 12 %. The demo's FLUX: told 0.129 to 0.134, found 0.114 to 0.136. nvfp4 hardly
# feels outliers: 0.100 to 0.114. With fewer than two degrees the branch takes out what is largest: errors are smaller.
EXPECTED = {"int4": (0.092, 0.325), "nvfp4": (0.107, 0.05)}
GOOD, BAD = 0.15, 0.21  # median errors of models that came out well and badly at W4A4, as others report them
LIMIT = (GOOD + BAD) / 2  # of the median: above it, a model is nearer to those that came out badly
BADLY = 0.05  # of the weights looked at that may be in layers above BAD
NAMED = 6


@dataclass(frozen=True)
class Precheck:
    """What was found.

    Args:
        losses: layer -> what rounding alone costs its weights, relative, each group's largest left out.
        weights: layer -> how many it has.
        precision: of the weights.
        broken: layers whose weights are not finite.
    """

    losses: dict[str, float]
    weights: dict[str, int]
    precision: str = "int4"
    broken: tuple[str, ...] = ()

    @property
    def expected(self) -> dict[str, float]:
        """Layer -> relative output error that it will have at W4A4; of int8, the loss."""
        offset, slope = EXPECTED.get(self.precision, (0.0, 1.0))
        return {name: offset + slope * loss for name, loss in self.losses.items()}

    @property
    def median(self) -> float:
        """Of the expected errors; 0 where nothing was looked at."""
        return statistics.median(self.expected.values()) if self.losses else 0.0

    @property
    def hurt(self) -> list[str]:
        """Layers whose error will be BAD, worst first."""
        expected = self.expected
        return sorted((n for n in expected if expected[n] > BAD), key=lambda n: -expected[n])

    @property
    def share(self) -> float:
        """Of the weights looked at that are in such layers."""
        return sum(self.weights[n] for n in self.hurt) / max(1, sum(self.weights.values()))

    def summary(self) -> list[str]:
        """For the user, before the run; nothing where no layer was looked at."""
        if not self.losses or self.precision not in EXPECTED:
            return []
        return [
            f"expected error of a layer at W4A4, from its weights: median {self.median:.2f} (models at {GOOD} come out "
            f"well, at {BAD} badly)"
        ]

    def warnings(self) -> list[str]:
        """For the user, a sentence each; none where all is well."""
        lines = []
        if self.broken:
            lines.append(f"weights that are NaN or infinite: {_some(self.broken)}. Repair or re-download the model.")
        expected = self.expected
        ordered = sorted(expected, key=lambda name: -expected[name])
        named = self.hurt or ordered
        worst = ", ".join(f"{name} ({expected[name]:.2f})" for name in named[:NAMED])
        more = ", ..." if len(named) > NAMED else ""
        if self.median > LIMIT or self.share > BADLY:
            lines.append(
                f"this model will quantize badly: half of its layers will have an error of {self.median:.2f} or more "
                f"at W4A4, and {self.share:.0%} of the weights looked at are in layers above {BAD}: {worst}{more}. "
                "Take int8, or keep them in 16 bits."
            )
        elif self.hurt:
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
    return Precheck(losses, sizes, spec.precision, tuple(broken))


def _sample_blocks(plan: ModelPlan) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for block in plan.blocks:
        kinds.setdefault(block.rpartition(".")[0], []).append(block)
    return [blocks[i] for blocks in kinds.values() for i in {0, len(blocks) // 2, len(blocks) - 1}]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
