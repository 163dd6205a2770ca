"""A second file with everything of a model that is not quantized: MiniMax H3's files hold quantized layers only."""

from ..errors import CheckpointError
from ..models import Architecture
from .container import Checkpoint
from .read_plan import NAMED_AT_MOST, Plan
from .same_model import DTYPES, SameModel


def require_base(plan: Plan) -> None:
    """Raise CheckpointError where a second file is needed and missing, or given and not needed."""
    family, checkpoint = plan.architecture, plan.checkpoint
    wanted = needs_base(checkpoint, family)
    if wanted and checkpoint.base is None:
        raise CheckpointError(
            f"{checkpoint.name}: holds the quantized layers of {family.title} only. Give as second file "
            f"{family.base_file}: second_file of Load Model (SVDQuant), or --base of the convert command."
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
    watch = SameModel(plan.checkpoint, base, sorted(have), family.members)
    plan.watch(watch)
    for name in taken:
        plan.add(name, name, lambda name=name: base[name])


def _required(plan: Plan, base: Checkpoint) -> list[str]:
    family = plan.architecture
    counts = family.count_blocks([*plan.hosts, *base], "host")
    names = [f"{host}.weight" for host, _ in family.linears(counts)]
    for block in family.blocks:
        names += [f"{block.host}.{i}.{name}" for i in range(counts[block.host]) for name in block.plain]
    return names + [host for host in family.plain_tensors() if not family.is_optional(host)]
