"""A whole model: every Linear of its blocks, one at a time."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..errors import ArchitectureError
from ..layer import QuantizedLayer
from ..model import QuantizedModel
from ..models import Architecture, LinearMap
from .known_inputs import KNOWN_INPUTS
from .layer import PartReport, quantize_layer
from .plan import LayerPlan
from .spec import QuantSpec
from .statistics import InputStatistics


def count_linears(architecture: Architecture, names: list[str]) -> int:
    """How many Linears quantize_model will visit, for a progress bar."""
    counts = architecture.count_blocks(names, "host")
    return sum(counts[block.host] * len(block.linears) for block in architecture.blocks)


def quantize_model(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    names: list[str],
    spec: QuantSpec,
    device: torch.device,
    on_layer: Callable[[str], None] = lambda name: None,
    calibration: Mapping[str, InputStatistics] | None = None,
) -> tuple[QuantizedModel, list[PartReport], list[str]]:
    """Quantize all Linears of a model's blocks; everything else is taken over in spec.scale_dtype.

    Args:
        weights: host tensor name -> tensor of any float dtype.
        names: all host tensor names.
        device: where the arithmetic runs; results come back to the CPU.
        on_layer: called with the name of each Linear when it is done; what it raises ends the run.
        calibration: recorded inputs by host module name; the others are worked out from the weights.

    Returns:
        The model, a report for each part, and one sentence for each layer that stays in 16 bits.

    Raises:
        SVDQuantError: a weight is not finite, or a result does not fit; see quantize_layer.
    """
    model, reports, kept = QuantizedModel(architecture), [], []
    counts = architecture.count_blocks(names, "host")
    inputs = KNOWN_INPUTS[architecture.name](weights, names, spec.seed, device)
    calibration = calibration or {}
    for block in architecture.blocks:
        for index in range(counts[block.host]):
            prefix = f"{block.host}.{index}"
            recorded = all(f"{prefix}.{linear.host}" in calibration for linear in block.linears)
            known = calibration if recorded else {**inputs.of_block(prefix), **_of_block(calibration, prefix)}
            for linear in block.linears:
                name = f"{prefix}.{linear.host}"
                weight = weights[f"{name}.weight"].to(device)
                bias = weights[f"{name}.bias"].to(device) if f"{name}.bias" in names else None
                try:
                    plan = plan_for(linear, *weight.shape)
                    layer, parts = quantize_layer(weight, bias, plan, spec, name, known.get(name))
                    model.layers[name] = _to_cpu(layer)
                    reports += parts
                except ArchitectureError as error:
                    if len(linear.sources) > 1:
                        raise
                    kept.append(str(error))
                    model.plain[f"{name}.weight"] = weight.to("cpu", spec.scale_dtype)
                    if bias is not None:
                        model.plain[f"{name}.bias"] = bias.to("cpu", spec.scale_dtype)
                on_layer(name)
    taken = {f"{name}.{end}" for name in model.layers for end in ("weight", "bias")} | model.plain.keys()
    model.plain |= {name: weights[name].to(spec.scale_dtype) for name in names if name not in taken}
    return model, reports, kept


def plan_for(linear: LinearMap, out_features: int, in_features: int) -> LayerPlan:
    """How a Linear of these sizes splits into parts."""
    gelu = tuple(index in linear.unsigned for index in range(len(linear.sources)))
    if linear.modulation_chunks:
        return LayerPlan.modulation(out_features, in_features)
    if len(linear.sources) == 1:
        return LayerPlan.whole(out_features, in_features, gelu[0])
    if linear.split is None:
        raise ValueError(f"{linear.host}: several sources and no rule how they split it")
    sizes = linear.split(out_features, in_features)
    if linear.stack == "rows":
        return LayerPlan.stack_rows(sizes, in_features)
    return LayerPlan.stack_columns(out_features, sizes, gelu)


def _of_block(calibration: Mapping[str, InputStatistics], block: str) -> dict[str, InputStatistics]:
    return {name: calibration[name] for name in calibration if name.startswith(f"{block}.")}


def _to_cpu(layer: QuantizedLayer) -> QuantizedLayer:
    parts = tuple(
        type(p)(p.scheme, p.rows, p.columns, p.act_unsigned, {n: t.cpu() for n, t in p.tensors.items()})
        for p in layer.parts
    )
    return QuantizedLayer(
        layer.in_features, layer.out_features, parts, None if layer.bias is None else layer.bias.cpu()
    )
