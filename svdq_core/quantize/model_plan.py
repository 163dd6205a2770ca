"""What becomes of every Linear of a model: plain data, made before any weight is read.

plan_rules.py makes one of a traced model, layout_plan.py one of a family whose files have a published layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ...kernels.format import GROUP_SIZE_INT4, GROUP_SIZE_NVFP4
from ..padding import padded
from .part_plan import LayerPlan
from .spec import QuantSpec

EXAMPLES = 2  # names that a line of the report shows
HALF_BYTES = 2


@dataclass(frozen=True)
class PlannedLayer:
    """One Linear of the blocks.

    Args:
        name: module name. block: name of its block, "double_blocks.3".
        out_features, in_features: of its weight.
        parts: how it is quantized; None where it stays in 16 bits.
        group: the first Linear of its block that reads the same tensor; its own name if no other does.
        why: it stays in 16 bits, in words; "" where it does not.
    """

    name: str
    block: str
    out_features: int
    in_features: int
    parts: LayerPlan | None = None
    group: str = ""
    why: str = ""

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features

    @property
    def is_modulation(self) -> bool:
        """Whether its weight alone is quantized (W4A16)."""
        return self.parts is not None and self.parts.awq


@dataclass(frozen=True)
class ModelPlan:
    """All Linears of the blocks of a model, in the order in which they run.

    Args:
        title: of the model, for messages.
        parameters: of all of it.
        layers: name -> what becomes of it.
    """

    title: str
    parameters: int
    layers: dict[str, PlannedLayer] = field(default_factory=dict)

    def __contains__(self, name: object) -> bool:
        return name in self.layers

    def __getitem__(self, name: str) -> PlannedLayer:
        return self.layers[name]

    def __iter__(self) -> Iterator[PlannedLayer]:
        return iter(self.layers.values())

    @property
    def quantized(self) -> list[PlannedLayer]:
        return [layer for layer in self if layer.parts is not None]

    @property
    def names(self) -> list[str]:
        """Of the Linears that are quantized."""
        return [layer.name for layer in self.quantized]

    @property
    def blocks(self) -> dict[str, list[PlannedLayer]]:
        """Block -> its quantized Linears."""
        found: dict[str, list[PlannedLayer]] = {}
        for layer in self.quantized:
            found.setdefault(layer.block, []).append(layer)
        return found

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Name -> (out_features, in_features) of the Linears that are quantized."""
        return {layer.name: (layer.out_features, layer.in_features) for layer in self.quantized}

    def share(self, modulation: bool | None = None) -> float:
        """Quantized weights over all parameters, 0...1.

        Args:
            modulation: count those of modulation layers alone, or of the others; None: both.
        """
        counted = [x for x in self.quantized if modulation is None or x.is_modulation == modulation]
        return sum(layer.weights for layer in counted) / max(1, self.parameters)

    def nbytes(self, spec: QuantSpec) -> int:
        """Of the file to be, near enough to tell whether it fits."""
        total = HALF_BYTES * self.parameters
        for layer in self.quantized:
            total += layer_bytes(layer, spec) - HALF_BYTES * layer.weights
        return total

    def describe(self, spec: QuantSpec) -> list[str]:
        """Lines for the user, before the run."""
        layers = [layer for layer in self.quantized if not layer.is_modulation]
        lines = [
            f"{self.title}: {len(layers)} layers in {spec.precision}, {self.share(False):.1%} of "
            f"{self.parameters / 1e9:.2f} billion parameters; about {self.nbytes(spec) / 2**30:.2f} GiB"
        ]
        if self.share(True):
            count = len(self.quantized) - len(layers)
            lines.append(f"{count} modulation layers in W4A16, {self.share(True):.1%} of the parameters")
        return lines + [f"in 16 bits: {line}" for line in self.reasons()]

    def reasons(self) -> list[str]:
        """Why layers stay in 16 bits: a line for each reason, with the first names."""
        by_reason: dict[str, list[PlannedLayer]] = {}
        for layer in self:
            if layer.why:
                by_reason.setdefault(layer.why, []).append(layer)
        lines = []
        for why, layers in by_reason.items():
            if len(layers) == 1:
                lines.append(f"{layers[0].name}: {why}")
                continue
            share = sum(layer.weights for layer in layers) / max(1, self.parameters)
            named = ", ".join(layer.name for layer in layers[:EXAMPLES]) + (", ..." if len(layers) > EXAMPLES else "")
            lines.append(f"{len(layers)} layers, {share:.1%} of the parameters ({named}): {why}")
        return lines


def layer_bytes(layer: PlannedLayer, spec: QuantSpec) -> int:
    """What a quantized Linear takes in a file."""
    if layer.parts is not None and layer.parts.awq:
        return layer.weights // 2 + 2 * HALF_BYTES * layer.weights // layer.parts.group
    columns = padded(layer.in_features)
    weights = layer.out_features * columns
    branch = HALF_BYTES * (spec.rank * (layer.out_features + columns) + columns)
    if spec.precision == "int8":
        return weights + 4 * layer.out_features + branch
    scales = weights // GROUP_SIZE_NVFP4
    if spec.precision == "int4":
        scales = HALF_BYTES * weights // GROUP_SIZE_INT4
    return weights // 2 + scales + branch
