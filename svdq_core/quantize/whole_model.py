"""A whole model: every Linear that its plan quantizes, one group that shares an input at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ArchitectureError
from ..layer import Part, QuantizedLayer
from ..models import Architecture
from ..quantized_model import QuantizedModel
from ..stack import slice_rows
from .block_weights import BlockWeights
from .finished import Finished
from .model_plan import ModelPlan, PlannedLayer
from .one_layer import PartReport, quantize_layer
from .part_plan import LayerPlan
from .room import attempt
from .spec import QuantSpec
from .statistics import InputStatistics


class BlockInputs(Protocol):
    """What layers see when the model runs; blocks are asked for in the order of the plan."""

    def of_block(self, block: str) -> Mapping[str, InputStatistics]:
        """Statistics by module name of the Linears of a block, as far as they are known."""
        ...

    def close(self) -> None:
        """Nothing more will be asked for."""
        ...


# weights on the device of the run -> inputs made with them
InputsOf = Callable[[Mapping[str, Tensor]], BlockInputs]


def quantize_model(
    architecture: Architecture,
    plan: ModelPlan,
    weights: Mapping[str, Tensor],
    names: list[str],
    *,
    spec: QuantSpec,
    device: torch.device,
    on_layer: Callable[[str], None] = lambda name: None,
    calibration: Mapping[str, InputStatistics] | None = None,
    inputs: InputsOf | None = None,
) -> tuple[QuantizedModel, list[PartReport], list[str]]:
    """Quantize what the plan says; everything else is taken over in spec.scale_dtype.

    Args:
        architecture: of the model that comes out.
        weights: host tensor name -> tensor of any float dtype.
        names: all host tensor names.
        device: where the arithmetic runs; results come back to the CPU.
        on_layer: called with the name of each Linear when it is done; what it raises ends the run.
        calibration: recorded inputs by host module name.
        inputs: makes those of the others; None: they are assumed to be standard normal.

    Returns:
        The model, a report for each part, and one sentence for each layer that stays in 16 bits against the plan.

    Raises:
        SVDQuantError: a weight is not finite, or a result does not fit; see quantize_layer.
    """
    model, reports, kept = QuantizedModel(architecture), [], []
    for finished in quantize_layers(plan, weights, spec, device, calibration=calibration, inputs=inputs):
        if finished.layer is not None:
            model.layers[finished.name] = on_cpu(finished.layer)
        model.plain |= {name: tensor.cpu() for name, tensor in finished.plain.items()}
        reports += finished.reports
        kept += [finished.kept] if finished.kept else []
        on_layer(finished.name)
    model.plain |= {name: weights[name].to(spec.scale_dtype) for name in other_tensors(plan, names)}
    return model, reports, kept


def quantize_layers(
    plan: ModelPlan,
    weights: Mapping[str, Tensor],
    spec: QuantSpec,
    device: torch.device,
    *,
    calibration: Mapping[str, InputStatistics] | None = None,
    inputs: InputsOf | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
    keep: Sequence[str] = (),
    precision: Callable[[Sequence[str], str], str] = lambda names, usual: usual,
    poll: Callable[[], None] = lambda: None,
    make_room: Callable[[], None] = lambda: None,
) -> Iterator[Finished]:
    """Quantize Linears one group after the other, holding one block's weights at a time; arguments as quantize_model.

    Layers of one group read one tensor: they get one smoothing factor and share the input side of their low-rank
    branch, so that the runtime quantizes and projects their input once.

    Args:
        wanted: which groups, by the name of their first layer; what comes out of one does not depend on the others.
        keep: patterns of host module names, with * and ?, that stay in 16 bits.
        precision: of the layers of a group, by their names and the usual one.
        poll: called many times within each layer; what it raises ends the run.
        make_room: called when the device has no memory left, before another try; see room.py.
    """
    held = BlockWeights(weights, device, {layer.name: layer.block for layer in plan})
    source = None if inputs is None else inputs(held)
    calibration = calibration or {}
    try:
        for block, layers in plan.blocks.items():
            groups = [group for first, group in groups_of(layers).items() if wanted(first)]
            asked = [layer.name for group in groups for layer in group if not is_kept(layer.name, keep)]
            known = {name: calibration[name] for name in asked if name in calibration}
            if source is not None and len(known) < len(asked):
                known = {**_draw_inputs(source, block, device, make_room), **known}
            for group in groups:
                chosen = [layer for layer in group if not is_kept(layer.name, keep)]
                own = replace(spec, precision=precision([layer.name for layer in group], spec.precision))
                yield from _quantize_group(
                    chosen, held, known=known, spec=own, device=device, poll=poll, make_room=make_room
                )
                for layer in group:
                    if layer not in chosen:
                        yield _in_16_bits(layer.name, held, spec, f"{layer.name}: stays in 16 bits as asked.")
    finally:
        held.close()
        if source is not None:
            source.close()


def _draw_inputs(
    source: BlockInputs, block: str, device: torch.device, make_room: Callable[[], None]
) -> Mapping[str, InputStatistics]:
    return attempt(lambda _: source.of_block(block), device, make_room, block, anywhere=False)


def groups_of(layers: Sequence[PlannedLayer]) -> dict[str, list[PlannedLayer]]:
    """Name of its first layer -> the layers of a block that are quantized as one, since they read one tensor."""
    found: dict[tuple, list[PlannedLayer]] = {}
    for layer in layers:
        assert layer.parts is not None, "asked of a layer that stays in 16 bits"
        alone = layer.is_modulation or len(layer.parts.parts) > 1
        part = next(iter(layer.parts.parts))
        key = (layer.name if alone else layer.group, alone, part.after_gelu, layer.in_features)
        found.setdefault(key, []).append(layer)
    return {group[0].name: group for group in found.values()}


def _quantize_group(
    group: Sequence[PlannedLayer],
    held: BlockWeights,
    *,
    known: Mapping[str, InputStatistics],
    spec: QuantSpec,
    device: torch.device,
    poll: Callable[[], None],
    make_room: Callable[[], None],
) -> Iterator[Finished]:
    if not group:
        return
    names = [layer.name for layer in group]
    first, plan = group[0], group[0].parts
    assert plan is not None
    if len(group) > 1:
        whole = LayerPlan.whole(sum(x.out_features for x in group), first.in_features, plan.parts[0].after_gelu)
        plan = replace(whole, multiples=plan.multiples)
    statistics = next((known[name] for name in names if name in known), None)

    def run(place: torch.device) -> tuple[QuantizedLayer, list[PartReport]]:
        weight, bias = _stacked(names, held, place)
        return quantize_layer(weight, bias, plan, spec, first.name, statistics=statistics, poll=poll)

    try:
        layer, reports = attempt(run, device, make_room, first.name)
    except ArchitectureError as error:
        for name in names:
            yield _in_16_bits(name, held, spec, str(error).replace(first.name, name))
        return
    if len(group) == 1:
        yield Finished(first.name, layer, reports=tuple(reports))
        return
    for (top, bottom), member in zip(
        pairwise(accumulate((x.out_features for x in group), initial=0)), group, strict=True
    ):
        bias = None if layer.bias is None or f"{member.name}.bias" not in held else layer.bias[top:bottom]
        part = layer.parts[0]
        piece = slice_rows(part, top, bottom)
        own = Part(part.scheme, (0, bottom - top), part.columns, part.act_unsigned, piece.tensors)
        if part.act_unsigned and layer.bias is not None:
            bias = layer.bias[top:bottom]  # it holds the shift of the input
        report = replace(reports[0], layer=member.name, rows=(0, bottom - top))
        yield Finished(member.name, QuantizedLayer(member.in_features, bottom - top, (own,), bias), reports=(report,))


def _stacked(names: Sequence[str], held: BlockWeights, place: torch.device) -> tuple[Tensor, Tensor | None]:
    """Weights on top of each other, and their biases; zeros stand for biases that a layer lacks."""
    weights = [held[f"{name}.weight"].to(place) for name in names]
    keys = [f"{name}.bias" for name in names]
    if not any(key in held for key in keys):
        return (weights[0] if len(weights) == 1 else torch.cat(weights)), None
    biases = [held[k].to(place) if k in held else w.new_zeros(len(w)) for k, w in zip(keys, weights, strict=True)]
    return (weights[0], biases[0]) if len(weights) == 1 else (torch.cat(weights), torch.cat(biases))


def other_tensors(plan: ModelPlan, names: list[str]) -> list[str]:
    """The host tensors that belong to no Linear that the plan quantizes."""
    quantized = set(plan.names)
    return [name for name in names if name.rpartition(".")[0] not in quantized]


def is_kept(name: str, keep: Sequence[str]) -> bool:
    """Whether one of the patterns names this layer."""
    return any(fnmatchcase(name, pattern) for pattern in keep)


def _in_16_bits(name: str, held: BlockWeights, spec: QuantSpec, why: str) -> Finished:
    tensors = {key: held[key] for key in (f"{name}.weight", f"{name}.bias") if key in held}
    return Finished(name, plain={n: t.to(spec.scale_dtype) for n, t in tensors.items()}, kept=why)


def on_cpu(layer: QuantizedLayer) -> QuantizedLayer:
    """The same in main memory."""
    parts = tuple(
        type(p)(p.scheme, p.rows, p.columns, p.act_unsigned, {n: t.cpu() for n, t in p.tensors.items()})
        for p in layer.parts
    )
    return QuantizedLayer(
        layer.in_features, layer.out_features, parts, None if layer.bias is None else layer.bias.cpu()
    )
