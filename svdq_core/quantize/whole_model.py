"""A whole model: every Linear of its blocks, one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from ..errors import ArchitectureError
from ..layer import QuantizedLayer
from ..models import Architecture, LinearMap
from ..quantized_model import QuantizedModel
from .finished import Finished
from .known_inputs import KNOWN_INPUTS
from .one_layer import PartReport, quantize_layer
from .part_plan import LayerPlan
from .room import attempt
from .spec import QuantSpec
from .statistics import InputStatistics


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
    for finished in quantize_layers(architecture, weights, names, spec, device, calibration):
        if finished.layer is not None:
            model.layers[finished.name] = _to_cpu(finished.layer)
        model.plain |= {name: tensor.cpu() for name, tensor in finished.plain.items()}
        reports += finished.reports
        kept += [finished.kept] if finished.kept else []
        on_layer(finished.name)
    model.plain |= {name: weights[name].to(spec.scale_dtype) for name in other_tensors(architecture, names)}
    return model, reports, kept


def quantize_layers(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    names: list[str],
    spec: QuantSpec,
    device: torch.device,
    calibration: Mapping[str, InputStatistics] | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
    keep: Sequence[str] = (),
    poll: Callable[[], None] = lambda: None,
    make_room: Callable[[], None] = lambda: None,
) -> Iterator[Finished]:
    """Quantize Linears one after the other, holding one block's weights at a time; arguments as quantize_model.

    Args:
        wanted: which Linears, by host module name; what comes out of one does not depend on the others.
        keep: patterns of host module names, with * and ?, that stay in 16 bits.
        poll: called many times within each layer; what it raises ends the run.
        make_room: called when the device has no memory left, before another try; see room.py.
    """
    counts = architecture.count_blocks(names, "host")
    held = _BlockWeights(weights, device)
    kind = KNOWN_INPUTS.get(architecture.name)
    inputs = None if kind is None else kind(held, names, spec.seed, device)
    calibration = calibration or {}
    for block in architecture.blocks:
        for index in range(counts[block.host]):
            prefix = f"{block.host}.{index}"
            linears = {f"{prefix}.{linear.host}": linear for linear in block.linears}
            linears = {name: linear for name, linear in linears.items() if wanted(name)}
            quantized = [name for name in linears if not _is_kept(name, (*keep, *architecture.kept))]
            known = {name: calibration[name] for name in quantized if name in calibration}
            if inputs is not None and len(known) < len(quantized):
                drawn = attempt(lambda _, p=prefix, i=inputs: i.of_block(p), device, make_room, prefix, anywhere=False)
                known = {**drawn, **known}
            for name, linear in linears.items():
                weight = held[f"{name}.weight"]
                bias = held[f"{name}.bias"] if f"{name}.bias" in names else None
                if name not in quantized:
                    why = "as asked" if _is_kept(name, keep) else f"as in files of {architecture.title}"
                    yield _in_16_bits(name, weight, bias, spec, f"{name}: stays in 16 bits {why}.")
                    continue
                try:
                    layer, reports = attempt(
                        lambda place, w=weight, b=bias, m=linear, n=name: quantize_layer(
                            w.to(place),
                            None if b is None else b.to(place),
                            plan_for(m, *w.shape),
                            spec,
                            n,
                            known.get(n),  # noqa: B023  called at once
                            poll,
                        ),
                        device,
                        make_room,
                        name,
                    )
                    yield Finished(name, layer, reports=tuple(reports))
                except ArchitectureError as error:
                    yield _in_16_bits(name, weight, bias, spec, str(error))


def other_tensors(architecture: Architecture, names: list[str]) -> list[str]:
    """The host tensors that belong to no Linear of a block."""
    return [name for name in names if architecture.find_linear(name.rpartition(".")[0]) is None]


class _BlockWeights(Mapping[str, Tensor]):
    """Weights on the device, those of the last block asked for kept: its inputs and its quantization both read them."""

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device):
        self.weights, self.device = weights, device
        self._block, self._held = "", {}

    def __getitem__(self, name: str) -> Tensor:
        block = ".".join(name.split(".")[:2])
        if block != self._block:
            self._block, self._held = block, {}
        if name not in self._held:
            self._held[name] = self.weights[name].to(self.device)
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _is_kept(name: str, keep: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in keep)


def _in_16_bits(name: str, weight: Tensor, bias: Tensor | None, spec: QuantSpec, why: str) -> Finished:
    tensors = {f"{name}.weight": weight} | ({} if bias is None else {f"{name}.bias": bias})
    return Finished(name, plain={n: t.to(spec.scale_dtype) for n, t in tensors.items()}, kept=why)


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


def _to_cpu(layer: QuantizedLayer) -> QuantizedLayer:
    parts = tuple(
        type(p)(p.scheme, p.rows, p.columns, p.act_unsigned, {n: t.cpu() for n, t in p.tensors.items()})
        for p in layer.parts
    )
    return QuantizedLayer(
        layer.in_features, layer.out_features, parts, None if layer.bias is None else layer.bias.cpu()
    )
