"""Makes the layers of each way, all from the same weights and the same recorded inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.format import GELU_SHIFT
from ...svdq_core.models.architecture import LinearMap
from ...svdq_core.models.flux import FLUX
from ...svdq_core.quantize.calibrate import Collector
from ...svdq_core.quantize.grid import NF4, Grid, runtime_arithmetic
from ...svdq_core.quantize.layout_plan import plan_for, plan_weights
from ...svdq_core.quantize.problem import Problem
from ...svdq_core.quantize.round import fit_scales, round_awq, round_to_units, units_to_values
from ...svdq_core.quantize.spec import QuantSpec
from ...svdq_core.quantize.statistics import InputStatistics
from ...svdq_core.quantize.whole_model import quantize_model
from ..baselines import METHODS, with_bits
from .evaluated_scenes import calibration_scenes
from .linears import DenseLinear, Layer, RealLinear, SimulatedLinear, SimulatedPart
from .methods import Way
from .network import block_linears, flux_weights, latents_by_step, load_flux

TOKENS = 1024  # recorded of each input
CALIBRATION_STEPS = 8
MODULATION_GROUP = 64


@dataclass(frozen=True)
class Source:
    """The unquantized model and what was recorded of it.

    Args:
        weights: of the file, by the host's names, on the CPU.
        inputs: host module name -> statistics, on the CPU.
    """

    weights: dict[str, Tensor]
    inputs: dict[str, InputStatistics]

    def bias(self, name: str) -> Tensor:
        """Of a Linear: (N,) float32."""
        return self.weights[f"{name}.bias"].float()


def record(captions: int, device: torch.device) -> Source:
    """Draw training captions with the unquantized model and record the input of every block Linear."""
    model = load_flux(device)
    linears = block_linears(model)
    collector = Collector(0, TOKENS, {n: ((0, m.in_features),) for n, m in linears.items()})
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: collector.add(name, inputs[0]))
        for name, module in linears.items()
    ]
    scenes = calibration_scenes(captions, device)
    for _ in latents_by_step(model, scenes, scenes.noise, CALIBRATION_STEPS):
        pass
    for hook in hooks:
        hook.remove()
    return Source(flux_weights(), {name: collector.statistics(name) for name in collector.names()})


def quantized_layers(way: Way, source: Source) -> dict[str, Layer]:
    """The layers of a way, by the host's names; none for 16-bit arithmetic.

    All on the CPU: layers this small are quantized faster there, by many processes at once, always to the same bits.
    """
    if way.kind == "arithmetic":
        return {}
    if way.kind == "baseline":
        return _baseline_layers(way, source)
    layers = _pack_layers(way, source)
    if way.kind == "modulation":
        return {name: layer for name, layer in layers.items() if isinstance(layer, DenseLinear)}
    return layers


def _pack_layers(way: Way, source: Source) -> dict[str, Layer]:
    if way.kind == "modulation" and not way.is_calibrated:
        return {n: _modulation(n, source, 4) for n, linear in _linears(source) if linear.modulation_chunks}
    spec = QuantSpec(way.precision, way.activations, way.rank, way.method or "fast", score_tokens=TOKENS)
    calibration = source.inputs if way.is_calibrated else None
    quantized, _, kept = quantize_model(
        FLUX,
        plan_weights(FLUX, source.weights),
        source.weights,
        list(source.weights),
        spec=spec,
        device=torch.device("cpu"),
        calibration=calibration,
    )
    if kept:
        raise ValueError(f"{way.name}: {kept[0]}")
    layers: dict[str, Layer] = {}
    for name, layer in quantized.layers.items():
        if way.kind == "kernels":
            layers[name] = RealLinear(layer, way.activations)
        elif layer.parts[0].scheme == "awq":
            layers[name] = DenseLinear.of_layer(layer)
        else:
            layers[name] = SimulatedLinear.of_layer(layer, way.precision, way.activations)
    return layers


def _baseline_layers(way: Way, source: Source) -> dict[str, Layer]:
    method = METHODS[way.method]
    weight_bits = way.bits[0] if way.bits else 4
    layers: dict[str, Layer] = {}
    for name, linear in _linears(source):
        if linear.modulation_chunks:
            layers[name] = _modulation(name, source, weight_bits, way.method == "nf4")
            continue
        weight, parts = source.weights[f"{name}.weight"].float(), []
        for plan in plan_for(linear, *weight.shape).parts:
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


def _linears(source: Source) -> list[tuple[str, LinearMap]]:
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
