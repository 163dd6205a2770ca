"""Reading nunchaku files: which of their layers make which Linear of the host."""

from .. import layouts
from ..arena import Arena, aligned
from ..errors import CheckpointError
from ..layer import QuantizedLayer
from ..models import BlockMap, LinearMap
from ..stack import holds_bits
from .assemble import combine
from .container import Checkpoint, read_json
from .nunchaku_layers import MODULATION_TENSORS, SVDQUANT_TENSORS, room_for, unpack_layer, unpack_modulation
from .nunchaku_names import EXACT, SIGNED_BIAS, Spelling, spelling_of
from .read_plan import Plan, join
from .recognize import recognize_source


def plan_nunchaku(checkpoint: Checkpoint) -> Plan:
    """The plan for a nunchaku file or legacy folder.

    Raises:
        CheckpointError: another kind of file, or fewer blocks than it announces.
    """
    architecture = recognize_source(checkpoint.name, checkpoint)
    plan, spelling = Plan(checkpoint, architecture), spelling_of(architecture, checkpoint)
    counts = architecture.count_blocks(checkpoint, "source")
    check_counts(plan, counts)
    for block in architecture.blocks:
        for index in range(counts[block.host]):
            _plan_block(plan, spelling, block, index)
    plan_outside_blocks(plan)
    return plan


def _plan_block(plan: Plan, spelling: Spelling, block: BlockMap, index: int) -> None:
    for linear in block.linears:
        names = [spelling.layer(block.source, index, source) for source in linear.sources]
        host = f"{block.host}.{index}.{linear.host}"
        quantized = [f"{name}.qweight" in plan.checkpoint for name in names]
        if all(quantized):
            kinds = MODULATION_TENSORS if linear.modulation_chunks else SVDQUANT_TENSORS
            stored = [want_layer(plan, name, spelling.suffixes, kinds) for name in names]
            plan.add(host, names[0], lambda linear=linear, stored=stored: _read_linear(plan.checkpoint, linear, stored))
        elif any(quantized):
            raise CheckpointError(
                f"{plan.checkpoint.name}: {' and '.join(names)} feed one layer, but only some of them are quantized. "
                "The file is incomplete; download it again."
            )
        else:
            _plan_unquantized(plan, host, linear, names)
    for host, sources in block.plain.items():
        plan.add_plain(
            f"{block.host}.{index}.{host}", (spelling.layer(block.source, index, source) for source in sources)
        )


def _plan_unquantized(plan: Plan, host: str, linear: LinearMap, names: list[str]) -> None:
    """A layer that the quantizer left in 16 bits."""
    weights, dim = [f"{name}.weight" for name in names], 1 if linear.stack == "columns" else 0
    plan.want(*weights)
    where = f"{plan.checkpoint.name}: {weights[0]}"
    plan.add(f"{host}.weight", weights[0], lambda: join([plan.checkpoint[name] for name in weights], dim, where))
    biases = [f"{name}.bias" for name in names if f"{name}.bias" in plan.checkpoint]
    if not biases:
        return
    if linear.stack == "columns":
        plan.want(*biases)
        plan.add(
            f"{host}.bias", biases[0], lambda: sum((plan.checkpoint[n] for n in biases[1:]), plan.checkpoint[biases[0]])
        )
    else:
        plan.add_plain(f"{host}.bias", biases)


def want_layer(plan: Plan, name: str, suffixes: dict[str, str], kinds: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Note the tensors of one checkpoint layer that the file has.

    Args:
        suffixes: canonical tensor name -> suffix. kinds: canonical names that such a layer may have.

    Returns:
        The layer's name, and canonical tensor name -> full name in the file.
    """
    spelled = {kind: suffixes[kind] for kind in kinds} | {f"{EXACT}{kind}": f"{EXACT}{kind}" for kind in kinds}
    spelled[SIGNED_BIAS] = SIGNED_BIAS
    stored = {kind: f"{name}.{end}" for kind, end in spelled.items() if f"{name}.{end}" in plan.checkpoint}
    plan.want(*stored.values())
    return name, stored


def _read_linear(checkpoint: Checkpoint, linear: LinearMap, layers: list[tuple[str, dict[str, str]]]) -> QuantizedLayer:
    """One host Linear from the checkpoint layers that it is made of, as want_layer returns them."""
    found = [(name, {kind: checkpoint[full] for kind, full in stored.items()}) for name, stored in layers]
    # of layers that are summed all but the last may keep a bias of their own
    kept = [t["bias"] for _, t in found[:-1] if "bias" in t] if linear.stack == "columns" else []
    arena = Arena(sum(room_for(tensors) for _, tensors in found) + sum(aligned(bias.nbytes) for bias in kept))
    parts = []
    for position, (name, tensors) in enumerate(found):
        where = f"{checkpoint.name}: {name}"
        if linear.modulation_chunks:
            part, bias = unpack_modulation(tensors, linear.modulation_chunks, where, arena)
        else:
            part, bias = unpack_layer(tensors, position in linear.unsigned, where, arena)
        if bias is not None and linear.stack == "columns" and position < len(found) - 1 and holds_bits(bias):
            bias = arena.copy(bias)  # one of zeros is dropped
        parts.append((name, part, bias))
    return combine(checkpoint.name, linear.stack, parts, arena)


def plan_outside_blocks(plan: Plan, prefix: str = "") -> None:
    """Everything under diffusers' names, with that prefix, that lies outside the blocks."""
    expected = plan.architecture.expected_tensors(lambda host, source: prefix + source in plan.checkpoint)
    for host, source in expected.items():
        swapped = host.rpartition(".")[0] in plan.architecture.swapped_halves
        plan.add_plain(host, [prefix + source], layouts.swap_halves if swapped else None)


def check_counts(plan: Plan, counts: dict[str, int]) -> None:
    """Raise CheckpointError where a file has other numbers of blocks than its own config says."""
    config = read_json(plan.checkpoint, "config")
    for block in plan.architecture.blocks:
        expected, found = config.get(block.config_key), counts[block.host]
        if isinstance(expected, int) and expected != found:
            raise CheckpointError(
                f"{plan.checkpoint.name}: {found} {block.host} found, {expected} announced by the file's own config. "
                "It is incomplete; download it again."
            )
