"""From 16-bit weights to SVDQuant: one step of the paper per file."""

from .one_layer import PartReport, quantize_layer, quantize_part
from .part_plan import LayerPlan, PartPlan
from .spec import QuantSpec
from .statistics import InputStatistics

__all__ = [
    "InputStatistics",
    "LayerPlan",
    "PartPlan",
    "PartReport",
    "QuantSpec",
    "quantize_layer",
    "quantize_part",
]
