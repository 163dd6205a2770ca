"""The plan of a MODEL in the graph: what quantizing it would do, found once for each model."""

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import torch
from torch import Tensor, nn

from ....svdq_core.errors import ArchitectureError, SVDQuantError
from ....svdq_core.models import Architecture
from ....svdq_core.quantize.layout_plan import plan_layout, spare_idle_layers
from ....svdq_core.quantize.model_plan import ModelPlan
from ....svdq_core.quantize.plan_rules import plan_model
from ....svdq_core.quantize.refine_block import BlockRuns
from ....svdq_core.quantize.refine_file import RunsOf
from ....svdq_core.quantize.whole_model import BlockInputs, InputsOf
from ..model.dense_weights import architecture_of
from ..model.quantized_linear import is_quantized
from .block_inputs import NoiseInputs
from .noise_conditions import Request
from .refine_runs import HostRuns
from .trace import find_blocks, trace_model

logger = logging.getLogger("svdquant")


@dataclass(frozen=True)
class HostPlan:
    """What a MODEL's layers become, and how it is run on noise.

    Args:
        plan: of its Linears.
        architecture: its family; one without blocks where nobody has described it.
        request: what the model takes as input; None if it could not be run.
        blocks: block name -> its kind.
        notes: for the user, one sentence each.
    """

    plan: ModelPlan
    architecture: Architecture
    request: Request | None
    blocks: dict[str, str]
    notes: tuple[str, ...] = ()

    def inputs_of(self, model: comfy.model_base.BaseModel, seed: int, device: torch.device) -> InputsOf | None:
        """For quantize_layers: inputs of the layers, from ComfyUI's own model on noise."""
        request = self.request
        if request is None:
            return None

        def make(weights: Mapping[str, Tensor]) -> BlockInputs:
            return NoiseInputs(model, request, self.blocks, weights=weights, seed=seed, device=device)

        return make

    def runs_of(
        self,
        model: comfy.model_base.BaseModel,
        calls: Sequence[Mapping[str, Any]],
        device: torch.device,
        poll: Callable[[], None] = lambda: None,
    ) -> RunsOf:
        """For quantize_refined: ComfyUI's own model, called as it was when these calls were recorded."""
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

        def make(weights: Mapping[str, Tensor]) -> BlockRuns:
            return HostRuns(
                model, list(self.blocks), weights=weights, samples=calls, device=device, dtype=dtype, poll=poll
            )

        return make


_known: "weakref.WeakKeyDictionary[comfy.model_base.BaseModel, HostPlan]" = weakref.WeakKeyDictionary()


def plan_patcher(patcher) -> HostPlan:
    """The plan of a full-precision MODEL.

    Raises:
        SVDQuantError: it is quantized already.
        ArchitectureError: it has no repeated blocks, or cannot be run to find out about its layers.
    """
    if is_quantized(patcher):
        raise SVDQuantError("This model is an SVDQuant model already. Quantize the full-precision model instead.")
    found = _known.get(patcher.model)
    if found is None:
        found = _known[patcher.model] = plan_host_model(patcher.model)
    return found


def plan_host_model(model: comfy.model_base.BaseModel) -> HostPlan:
    """The plan of ComfyUI's model, on any device or without memory.

    Raises:
        ArchitectureError: as plan_patcher.
    """
    described = _described(model)
    blocks = find_blocks(model.diffusion_model)
    if described is not None:
        blocks = {layer.block: layer.block.rpartition(".")[0] for layer in described[1]}
    try:
        traced, request = trace_model(model, blocks)
    except ArchitectureError as error:
        if described is None:
            raise
        note = f"inputs of layers are taken for standard normal, which costs quality: {error}"
        return HostPlan(described[1], described[0], None, blocks, (note,))
    if described is not None:
        return HostPlan(spare_idle_layers(described[1], traced), described[0], request, blocks)
    plan = plan_model(traced)
    if not plan.names:
        raise ArchitectureError(
            f"{traced.title}: none of its layers can be quantized. " + " ".join(f"{line}." for line in plan.reasons())
        )
    return HostPlan(plan, Architecture(name=traced.title, title=traced.title, blocks=()), request, blocks)


def _described(model: comfy.model_base.BaseModel) -> tuple[Architecture, ModelPlan] | None:
    """The family of a model and the plan that its published layout makes; None if nobody has described it."""
    try:
        architecture = architecture_of(model)
    except ArchitectureError:
        return None
    network = model.diffusion_model
    shapes = {n: (m.out_features, m.in_features) for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    return architecture, plan_layout(architecture, shapes, sum(p.numel() for p in network.parameters()))
