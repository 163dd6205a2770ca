"""A model in a file that is to be quantized: what becomes of its layers, and what they see."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.container import Checkpoint, read_json
from ..checkpoint.dense_read import DenseModel
from ..models import Architecture
from .layout_plan import plan_layout
from .model_plan import ModelPlan
from .refine_file import RunsOf
from .whole_model import InputsOf

WITHOUT_COMFYUI = (
    "without ComfyUI the inputs of layers are taken for standard normal, which costs quality: name a ComfyUI (--host), "
    "so that its own model runs on noise, or record your prompts (--calibration)."
)


@dataclass(frozen=True)
class SourceModel:
    """Everything about it that a run needs.

    Args:
        architecture: of the file to be.
        plan: of its Linears.
        weights: ComfyUI's tensor name -> tensor of any float dtype, read when it is asked for.
        inputs: what layers see without a calibration; None: nobody knows.
        runs: its forwards in recorded calls, for refining; None: nobody can run it.
        extras: tensors that the file needs and `weights` lacks.
        ignored: tensors of the file that the model has no place for.
        notes: for the user, one sentence each.
    """

    architecture: Architecture
    plan: ModelPlan
    weights: Mapping[str, Tensor]
    inputs: InputsOf | None = None
    runs: Callable[[Sequence[Mapping[str, Any]]], RunsOf] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# of a file, for a seed and a device
OpenSource = Callable[[Checkpoint, int, torch.device], SourceModel]


def open_described(checkpoint: Checkpoint, seed: int = 0, device: torch.device | None = None) -> SourceModel:
    """A model of a described family, without ComfyUI; seed and device do not matter.

    Raises:
        CheckpointError: see DenseModel.
    """
    model = DenseModel(checkpoint)
    return SourceModel(
        model.architecture,
        plan_dense(model),
        model,
        extras=position_size(model),
        ignored=tuple(model.ignored),
        notes=(WITHOUT_COMFYUI,),
    )


def plan_dense(model: DenseModel) -> ModelPlan:
    """What becomes of the model's layers, by its family's published layout."""
    shapes = {name: model.shape(f"{name}.weight") for name, _ in model.architecture.linears(model.counts)}
    parameters = sum(math.prod(model.shape(name)) for name in model)
    return plan_layout(model.architecture, {n: (s[0], s[1]) for n, s in shapes.items()}, parameters)


def position_size(model: DenseModel) -> dict[str, Tensor]:
    """What tells ComfyUI for which image size a PixArt was trained: a `pos_embed` of that length.

    The host's files have one; for folders of diffusers the config says how long it is.
    """
    sample_size = read_json(model.checkpoint, "config").get("sample_size")
    if model.architecture.name != "pixart" or "pos_embed" in model or not isinstance(sample_size, int):
        return {}
    patch = model.shape("x_embedder.proj.weight")[-1]
    return {"pos_embed": torch.zeros(1, (sample_size // patch) ** 2, 1)}
