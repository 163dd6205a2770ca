"""Makes the layers of each way, all from the same weights and the same recorded inputs."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels.format import GELU_SHIFT
from ...svdq_core.layer import QuantizedLayer
from ...svdq_core.models.architecture import LinearMap
from ...svdq_core.models.flux import FLUX
from ...svdq_core.quantize.grid import NF4, Grid, runtime_arithmetic
from ...svdq_core.quantize.layout_plan import plan_for, plan_weights
from ...svdq_core.quantize.part_plan import LayerPlan
from ...svdq_core.quantize.problem import Problem
from ...svdq_core.quantize.round import fit_scales, round_awq, round_to_units, units_to_values
from ...svdq_core.quantize.spec import QuantSpec
from ...svdq_core.quantize.whole_model import quantize_model
from ..baselines import METHODS, with_bits
from .linears import DenseLinear, Layer, RealLinear, SimulatedLinear, SimulatedPart
from .methods import Way
from .recorded_inputs import TOKENS, Source

MODULATION_GROUP = 64


def quantized_layers(way: Way, source: Source, noise: Source) -> dict[str, Layer]:
    """The layers of a way, by the host's names; none for 16-bit arithmetic.

    Args:
        source: recorded on captions. noise: recorded on noise, for ways that are not calibrated.

    All on the CPU: layers this small are quantized faster there, by many processes at once, always to the same bits.
    """
    if way.kind == "arithmetic":
        return {}
    if way.kind == "baseline":
        return _baseline_layers(way, source)
    layers = _pack_layers(way, source if way.is_calibrated else noise)
    if way.kind == "modulation":
        return {name: layer for name, layer in layers.items() if isinstance(layer, DenseLinear)}
    return layers


def _pack_layers(way: Way, source: Source) -> dict[str, Layer]:
    if way.kind == "modulation" and not way.is_calibrated:
        return {n: _modulation(n, source, 4) for n, linear in source_linears(source) if linear.modulation_chunks}
    spec = QuantSpec(way.precision, way.activations, way.rank, way.method or "fast", score_tokens=TOKENS)
    quantized = quantize_source(source, spec)
    if way.kind == "kernels":
        return {name: RealLinear(layer, way.activations) for name, layer in quantized.items()}
    return simulated(quantized, spec)


def quantize_source(source: Source, spec: QuantSpec) -> dict[str, QuantizedLayer]:
    """The pack's layers by the host's names, quantized on the CPU."""
    quantized, _, kept = quantize_model(
        FLUX,
        plan_weights(FLUX, source.weights),
        source.weights,
        list(source.weights),
        spec=spec,
        device=torch.device("cpu"),
        calibration=source.inputs,
    )
    if kept:
        raise ValueError(kept[0])
    return quantized.layers


def simulated(layers: Mapping[str, QuantizedLayer], spec: QuantSpec) -> dict[str, Layer]:
    """What the pack's layers compute in the compute mode of the spec."""
    return {
        name: DenseLinear.of_layer(layer)
        if layer.parts[0].scheme == "awq"
        else SimulatedLinear.of_layer(layer, spec.precision, spec.activations)
        for name, layer in layers.items()
    }


def _baseline_layers(way: Way, source: Source) -> dict[str, Layer]:
    method = METHODS[way.method]
    weight_bits = way.bits[0] if way.bits else 4
    layers: dict[str, Layer] = {}
    for name, linear in source_linears(source):
        if linear.modulation_chunks:
            layers[name] = _modulation(name, source, weight_bits, way.method == "nf4")
            continue
        weight, parts = source.weights[f"{name}.weight"].float(), []
        for plan in plan_of(linear, weight).parts:
            is_shifted = plan.after_gelu and way.precision == "int4"
            problem = Problem(
                weight=weight[slice(*plan.rows), slice(*plan.columns)],
                statistics=source.inputs[name].columns(*plan.columns),
                arithmetic=runtime_arithmetic(way.precision, way.activations, is_shifted),
                shift=GELU_SHIFT if is_shifted else 0.0,
                rank=way.rank,
                name=f"{name}, rows {plan.rows}, columns {plan.columns}",
                score_tokens=TOKENS,
            )
            if way.bits:
                problem = with_bits(problem, *way.bits)
            problem = method.adapt(problem)
            parts.append(SimulatedPart.of_fit(method.solve(problem), problem, plan.rows, plan.columns, method.see))
        layers[name] = SimulatedLinear.of_parts(parts, source.bias(name))
    return layers


def plan_of(linear: LinearMap, weight: Tensor) -> LayerPlan:
    """How a weight (N, K) splits into parts."""
    return plan_for(linear, *weight.shape)


def source_linears(source: Source) -> list[tuple[str, LinearMap]]:
    """All Linears of the model's blocks: host module name and what the family says of it."""
    counts = FLUX.count_blocks(list(source.weights), "host")
    return [
        (f"{block.host}.{index}.{linear.host}", linear)
        for block in FLUX.blocks
        for index in range(counts[block.host])
        for linear in block.linears
    ]


def _modulation(name: str, source: Source, bits: int, is_nf4: bool = False) -> DenseLinear:
    """A modulation layer with the weights of a baseline: the format's asymmetric 4 bits, symmetric above, or NF4."""
    weight = source.weights[f"{name}.weight"].float()
    if is_nf4 or bits > 4:
        top = 2.0 ** (bits - 1) - 1
        grid = NF4 if is_nf4 else Grid("int", -top, top, MODULATION_GROUP)
        scales = fit_scales(weight, grid, torch.bfloat16, sweep=False)
        return DenseLinear(units_to_values(round_to_units(weight, scales, grid), scales, grid), source.bias(name))
    return DenseLinear(_restored_awq(weight), source.bias(name))


def _restored_awq(weight: Tensor) -> Tensor:
    codes, scales, zeros = round_awq(weight, torch.bfloat16)
    groups = codes.float().unflatten(-1, (scales.shape[1], -1))
    return torch.addcmul(zeros.float()[..., None], groups, scales.float()[..., None]).flatten(-2)
