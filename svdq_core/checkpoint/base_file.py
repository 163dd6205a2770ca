"""A second file with everything of a model that is not quantized: MiniMax H3's files hold quantized layers only."""

import torch

from ..apply_layer import dense_weight
from ..errors import CheckpointError
from ..layer import QuantizedLayer
from ..models import Architecture
from .container import Checkpoint
from .read_plan import NAMED_AT_MOST, Plan

DTYPES = ("BF16", "F16", "F32")
SAME_MODEL = 0.5  # relative distance of a layer from the second file; 4 bits make about 0.1, other models 1 or more


def require_base(plan: Plan) -> None:
    """Raise CheckpointError where a second file is needed and missing, or given and not needed."""
    family, checkpoint = plan.architecture, plan.checkpoint
    wanted = needs_base(checkpoint, family)
    if wanted and checkpoint.base is None:
        raise CheckpointError(
            f"{checkpoint.name}: holds the quantized layers of {family.title} only. Give as second file "
            f"{family.base_file}."
        )
    if not wanted:
        refuse_base(checkpoint, family)


def refuse_base(checkpoint: Checkpoint, family: Architecture) -> None:
    """Raise CheckpointError where a second file is given and not needed."""
    if checkpoint.base is not None:
        raise CheckpointError(
            f"{checkpoint.name}: a complete {family.title} model, so that {checkpoint.base.name} is not needed. Leave "
            "the second file empty."
        )


def needs_base(checkpoint: Checkpoint, family: Architecture) -> bool:
    """Whether a checkpoint lacks what is not quantized, in a family of which such files exist."""
    outside = [source for host, source in family.plain_tensors().items() if not family.is_optional(host)]
    return bool(family.base_file) and not all(source in checkpoint for source in outside)


def plan_base(plan: Plan, base: Checkpoint) -> None:
    """Append every tensor of the second file that the first one does not give.

    Raises:
        CheckpointError: it is quantized, incomplete, or of another model, as far as that can be told.
    """
    family, have = plan.architecture, plan.hosts
    taken = [name for name in base if name not in have and name.rpartition(".")[0] not in have]
    for name in taken:
        if base.dtype(name) not in DTYPES:
            raise CheckpointError(
                f"{base.name}: {name} is {base.dtype(name)}, expected {' or '.join(DTYPES)}. Take the 16-bit file."
            )
    missing = [name for name in _required(plan, base) if name not in have and name not in base]
    missing = [name for name in missing if name.rpartition(".")[0] not in have]
    if missing:
        raise CheckpointError(
            f"{base.name}: {len(missing)} tensors are missing that {plan.checkpoint.name} does not have either: "
            f"{', '.join(missing[:NAMED_AT_MOST])}. Expected {family.base_file}."
        )
    plan.ignore_others()
    for name in taken:
        plan.add(name, name, lambda name=name: base[name])
    plan.watch(lambda host, layer: _check_same_model(plan, base, host, layer))


def _required(plan: Plan, base: Checkpoint) -> list[str]:
    family = plan.architecture
    counts = family.count_blocks([*plan.hosts, *base], "host")
    names = [f"{host}.weight" for host, _ in family.linears(counts)]
    for block in family.blocks:
        names += [f"{block.host}.{i}.{name}" for i in range(counts[block.host]) for name in block.plain]
    return names + [host for host in family.plain_tensors() if not family.is_optional(host)]


def _check_same_model(plan: Plan, base: Checkpoint, host: str, layer: QuantizedLayer) -> None:
    """Raise CheckpointError where the second file has the layer in 16 bits, and its weights are others."""
    name = f"{host}.weight"
    if name not in base or base.dtype(name) not in DTYPES:
        return
    if base.shape(name) != (layer.out_features, layer.in_features):
        raise CheckpointError(
            f"{base.name}: {name} has shape {base.shape(name)}, and {plan.checkpoint.name} has "
            f"({layer.out_features}, {layer.in_features}). They are not of one model."
        )
    theirs = base[name].float()
    distance = float(torch.linalg.norm(dense_weight(layer) - theirs) / torch.linalg.norm(theirs).clamp(min=1e-30))
    if not distance < SAME_MODEL:
        raise CheckpointError(
            f"{base.name}: {name} is {distance:.2f} of its size away from what {plan.checkpoint.name} has. They share "
            "their shapes and are of two models: take the second file of the model that was quantized."
        )
