"""The plan of a model whose family has a published layout: what others' files hold, ours hold."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor

from ..errors import ArchitectureError
from ..models import Architecture, LinearMap
from .model_plan import ModelPlan, PlannedLayer
from .part_plan import LayerPlan
from .traced_layers import TracedModel

NOT_IN_A_STEP = "does not run in every step"
ONE_ROW = "modulation, one row for each picture"


def plan_layout(architecture: Architecture, shapes: Mapping[str, tuple[int, int]], parameters: int) -> ModelPlan:
    """What becomes of each Linear that the family's files may hold quantized.

    Args:
        shapes: module name -> (out_features, in_features) of the model's Linears, at least those of its blocks.
        parameters: of all of the model.
    """
    layers, firsts = {}, {}
    for name, linear in architecture.linears(architecture.count_blocks([f"{n}.weight" for n in shapes], "host")):
        if name not in shapes:
            continue
        place = architecture.find_block(name)
        assert place is not None  # the name comes from the architecture
        rows, columns = shapes[name]
        parts, why = plan_for(linear, rows, columns), ""
        try:
            parts.check(rows, columns, name)
        except ArchitectureError as error:
            parts, why = None, str(error).removeprefix(f"{name}: ")
        if any(fnmatchcase(name, pattern) for pattern in architecture.kept):
            parts, why = None, "stays in 16 bits in files of this family"
        group = firsts.setdefault(architecture.input_name(name) or name, name)
        block = f"{place.block.host}.{place.index}"
        layers[name] = PlannedLayer(name, block, rows, columns, parts, group, why)
    return ModelPlan(architecture.title, parameters, layers)


def spare_idle_layers(plan: ModelPlan, traced: TracedModel) -> ModelPlan:
    """The plan without what files may hold quantized and a step hardly runs: MiniMax H3's modulation and refiner.

    Blocks stand in the order in which they run: what layers see then comes from one forward.
    """
    order = {block: place for place, block in enumerate(traced.blocks)}
    ordered = sorted(plan, key=lambda layer: order.get(layer.block, len(order)))
    layers = {layer.name: layer for layer in ordered}
    for linear in traced:
        layer = layers.get(linear.name)
        if layer is None or layer.parts is None or layer.is_modulation:
            continue
        if not linear.calls:
            layers[linear.name] = replace(layer, parts=None, why=NOT_IN_A_STEP)
        elif not (linear.grows_with_image or linear.grows_with_text):
            layers[linear.name] = replace(layer, parts=None, why=ONE_ROW)
    return replace(plan, layers=layers)


def plan_weights(architecture: Architecture, weights: Mapping[str, Tensor]) -> ModelPlan:
    """plan_layout for the tensors of a model, by name."""
    ends = {name: name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
    shapes = {short: weights[name].shape for name, short in ends.items()}
    sizes = {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}
    return plan_layout(architecture, sizes, sum(weights[name].numel() for name in weights))


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
