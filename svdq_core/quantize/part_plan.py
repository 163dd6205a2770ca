"""How the weight of one Linear splits into parts, and which sizes the format can hold."""

from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from ...kernels.format import GROUP_SIZE_AWQ
from ..errors import ArchitectureError

TILE = 128  # nunchaku files store weights in tiles of 128 x 128
AWQ_ROWS = 4  # and modulation weights in quadruples of rows


@dataclass(frozen=True)
class PartPlan:
    """A rectangle to be quantized on its own.

    Args:
        rows: (start, stop) within out_features.
        columns: (start, stop) within in_features.
        after_gelu: its input is the output of a GELU; int4 activations are then shifted and unsigned.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    after_gelu: bool = False


@dataclass(frozen=True)
class LayerPlan:
    """The parts that tile one weight.

    Args:
        parts: either stacked on rows (one input, one smoothing factor) or stacked on columns.
        awq: W4A16 without smoothing and low-rank branch, for modulation layers.
        multiples: of outputs and inputs that the file can hold.
        group: of awq, inputs that share a scale and a zero point.
        by_inputs: of awq, round by what is known of the inputs; without it, by the weight alone.
    """

    parts: tuple[PartPlan, ...]
    awq: bool = False
    multiples: tuple[int, int] = (TILE, TILE)
    group: int = GROUP_SIZE_AWQ
    by_inputs: bool = False

    @staticmethod
    def whole(out_features: int, in_features: int, after_gelu: bool = False) -> "LayerPlan":
        """One part."""
        return LayerPlan((PartPlan((0, out_features), (0, in_features), after_gelu),))

    @staticmethod
    def modulation(out_features: int, in_features: int) -> "LayerPlan":
        """One AWQ part."""
        return LayerPlan((PartPlan((0, out_features), (0, in_features)),), True, (AWQ_ROWS, GROUP_SIZE_AWQ))

    @staticmethod
    def text_encoder(out_features: int, in_features: int, group: int) -> "LayerPlan":
        """One AWQ part of a text encoder; groups of 64 where `group` does not divide the inputs."""
        group = GROUP_SIZE_AWQ if in_features % group else group
        return replace(LayerPlan.modulation(out_features, in_features), group=group, by_inputs=True)

    @staticmethod
    def stack_rows(heights: tuple[int, ...], in_features: int) -> "LayerPlan":
        """Parts on top of each other that share one input: FLUX `linear1`."""
        edges = pairwise(accumulate(heights, initial=0))
        return LayerPlan(tuple(PartPlan(rows, (0, in_features)) for rows in edges))

    @staticmethod
    def stack_columns(out_features: int, widths: tuple[int, ...], after_gelu: tuple[bool, ...]) -> "LayerPlan":
        """Parts side by side whose outputs add: FLUX `linear2`."""
        edges = pairwise(accumulate(widths, initial=0))
        parts = zip(edges, after_gelu, strict=True)
        return LayerPlan(tuple(PartPlan((0, out_features), columns, gelu) for columns, gelu in parts))

    def check(self, out_features: int, in_features: int, name: str) -> None:
        """Raise ArchitectureError unless the parts tile the weight in sizes that the file layout can hold.

        The caller may catch it and keep the layer in 16 bits.
        """
        area = 0
        for part in self.parts:
            (top, bottom), (left, right) = part.rows, part.columns
            area += (bottom - top) * (right - left)
            if not (0 <= top < bottom <= out_features and 0 <= left < right <= in_features):
                raise ArchitectureError(
                    f"{name}: part rows {part.rows}, columns {part.columns} lies outside the weight of "
                    f"{out_features} x {in_features}. This model is not of the kind it was taken for."
                )
            multiple = self.multiples
            if (bottom - top) % multiple[0] or (right - left) % multiple[1]:
                raise ArchitectureError(
                    f"{name}: {bottom - top} outputs and {right - left} inputs, expected multiples of {multiple[0]} "
                    f"and {multiple[1]}. The 4-bit layout cannot hold this layer; keep it in 16 bits."
                )
        shared_rows = all(p.rows == (0, out_features) for p in self.parts)
        shared_columns = all(p.columns == (0, in_features) for p in self.parts)
        if area != out_features * in_features or not (shared_rows or shared_columns):
            raise ArchitectureError(
                f"{name}: the parts do not tile the weight of {out_features} x {in_features}. "
                "This model is not of the kind it was taken for."
            )
