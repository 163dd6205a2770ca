"""Reading nunchaku files: which of their layers make which Linear of ComfyUI's model.

What a layer is, the tensors say, one by one: with smoothing it is W4A4, with zero points AWQ, with a weight 16 bit.
"""

from dataclasses import replace

from torch import Tensor

from .. import layouts
from ..arena import Arena, aligned
from ..errors import CheckpointError
from ..layer import QuantizedLayer
from ..models import BlockMap, LinearMap
from ..pieces import join_pieces
from ..stack import holds_bits
from .assemble import combine
from .base_file import plan_base, require_base
from .container import Checkpoint, read_json
from .nunchaku_layers import MODULATION_TENSORS, SVDQUANT_TENSORS, room_for, unpack_layer, unpack_modulation
from .nunchaku_names import EXACT, NEWER_SUFFIXES, SIGNED_BIAS, Spelling, spelling_of
from .read_plan import Plan, join
from .recognize import recognize_source
from .shift_check import check_shift
from .source_rows import plain_rows, read_rows, row_spans

StoredLayer = tuple[str, dict[str, str]]  # its name, and canonical tensor name -> full name in the file


def plan_nunchaku(checkpoint: Checkpoint) -> Plan:
    """The plan for a nunchaku file or legacy folder.

    Raises:
        CheckpointError: another kind of file, or fewer blocks than it announces.
    """
    architecture = recognize_source(checkpoint.name, checkpoint)
    plan, spelling = Plan(checkpoint, architecture), spelling_of(architecture, checkpoint)
    require_base(plan)
    counts = architecture.count_blocks(checkpoint, "source")
    check_counts(plan, counts)
    for block in architecture.blocks:
        for index in range(counts[block.host]):
            _plan_block(plan, spelling, block, index)
    plan_outside_blocks(plan, spelling=spelling)
    finish(plan)
    return plan


def finish(plan: Plan) -> None:
    """Append what comes from a second file, and what ComfyUI wants and no file has."""
    if plan.base is not None:
        plan_base(plan, plan.base)
    if plan.architecture.extras is not None:
        config = read_json(plan.checkpoint, "config")
        for host, tensor in plan.architecture.extras(plan.checkpoint.name, config).items():
            if host not in plan.hosts:
                plan.add(host, host, lambda tensor=tensor: tensor)


def _plan_block(plan: Plan, spelling: Spelling, block: BlockMap, index: int) -> None:
    for linear in block.linears:
        names = [spelling.layer(block.source, index, source) for source in linear.sources]
        host = f"{block.host}.{index}.{linear.host}"
        quantized = [f"{name}.qweight" in plan.checkpoint for name in names]
        if all(quantized):
            modulation = bool(linear.modulation_chunks)
            stored = [want_layer(plan, name, spelling.suffixes, modulation) for name in names]
            plan_quantized(plan, host, linear, stored)
        elif any(quantized):
            raise CheckpointError(
                f"{plan.checkpoint.name}: {' and '.join(names)} feed one layer, but only some of them are quantized. "
                "The file is incomplete; download it again."
            )
        else:
            linear, names = _found_apart(plan, block, index, linear, names)
            if plan.base is None or any(f"{name}.weight" in plan.checkpoint for name in names):
                plan_unquantized(plan, host, linear, names)
    plan_plain(plan, block, index, spelling)


def _found_apart(
    plan: Plan, block: BlockMap, index: int, linear: LinearMap, names: list[str]
) -> tuple[LinearMap, list[str]]:
    """A 16-bit Linear and its tensors: fused as quantized ones are, or as diffusers has it."""
    if not any(f"{name}.weight" in plan.checkpoint for name in names):
        for modules in block.alternatives(linear):
            apart = [f"{block.plain_prefix}.{index}.{module}" for module in modules]
            if apart != names and all(f"{name}.weight" in plan.checkpoint for name in apart):
                return replace(linear, sources=modules, stack="rows", split=None, piece=None), apart
    return linear, names


def plan_quantized(plan: Plan, host: str, linear: LinearMap, stored: list[StoredLayer]) -> None:
    """Append a Linear that is made of quantized layers of the file."""
    name = plan.architecture.input_name(host)
    asked = plan.architecture.behind_gelu.get(linear.host, ())
    plan.add(host, stored[0][0], lambda: _read_linear(plan.checkpoint, linear, stored, name, asked))


def plan_unquantized(plan: Plan, host: str, linear: LinearMap, names: list[str]) -> None:
    """Append a Linear that the quantizer left in 16 bits."""
    weights, dim = [f"{name}.weight" for name in names], 1 if linear.stack == "columns" else 0
    plan.want(*weights)
    where = f"{plan.checkpoint.name}: {weights[0]}"
    own = linear.piece is not None or linear.swapped

    def of_rows(tensor: Tensor) -> Tensor:
        columns = plan.checkpoint.shape(weights[0])[-1]
        return plain_rows(tensor, row_spans(linear, tensor.shape[0], columns, where)) if own else tensor

    plan.add(f"{host}.weight", weights[0], lambda: of_rows(join([plan.checkpoint[n] for n in weights], dim, where)))
    biases = [f"{name}.bias" for name in names if f"{name}.bias" in plan.checkpoint]
    if not biases:
        return
    if linear.stack == "columns":
        plan.want(*biases)
        plan.add(
            f"{host}.bias", biases[0], lambda: sum((plan.checkpoint[n] for n in biases[1:]), plan.checkpoint[biases[0]])
        )
    else:
        plan.add_plain(f"{host}.bias", biases, of_rows)


def plan_plain(plan: Plan, block: BlockMap, index: int, spelling: Spelling, prefix: str = "") -> None:
    """Append what the description has as unquantized tensors of a block; some writers quantize Linears among them."""
    for host in block.plain:
        form = block.plain_map(host)
        names = [prefix + spelling.layer(block.plain_prefix, index, source) for source in form.sources]
        module, _, end = names[0].rpartition(".")
        if len(names) == 1 and end in ("weight", "bias") and f"{module}.qweight" in plan.checkpoint:
            if end == "weight":
                own = host.rpartition(".")[0]
                _plan_quantized_plain(plan, block, index, own, want_layer(plan, module, spelling.suffixes))
            continue
        may_lack = host in block.optional or plan.base is not None
        if may_lack and not any(name in plan.checkpoint for name in names):
            continue
        plan.add_plain(f"{block.host}.{index}.{host}", names, _flattening(form.rows, names[0]) if form.rows else None)


def _plan_quantized_plain(plan: Plan, block: BlockMap, index: int, host: str, stored: StoredLayer) -> None:
    """A Linear that most writers leave in 16 bits: rows in plain order, signed activations."""
    whole = LinearMap(host, (stored[0],), shape=(None, None), bias=f"{host}.bias" in block.plain)
    plan_quantized(plan, f"{block.host}.{index}.{host}", whole, [stored])


def _flattening(rows: int, name: str):
    def flatten(tensor: Tensor) -> Tensor:
        if tensor.ndim != 2 or tensor.shape[0] != rows:
            raise CheckpointError(f"{name} has shape {tuple(tensor.shape)}, expected {rows} rows. The file is damaged.")
        return tensor.flatten()

    return flatten


def want_layer(plan: Plan, name: str, suffixes: dict[str, str], modulation: bool = False) -> StoredLayer:
    """Note the tensors of one checkpoint layer that the file has.

    Args:
        suffixes: canonical tensor name -> suffix.
        modulation: what the layer is where its tensors do not tell.
    """
    smoothed = any(f"{name}.{suffixes[kind]}" in plan.checkpoint for kind in ("smooth_factor", "smooth_factor_orig"))
    zeroed = f"{name}.{suffixes['wzeros']}" in plan.checkpoint
    unclear = modulation or plan.checkpoint.dtype(f"{name}.qweight") == "I32"
    kinds = MODULATION_TENSORS if zeroed or (unclear and not smoothed) else SVDQUANT_TENSORS
    spelled = {kind: suffixes[kind] for kind in kinds} | {f"{EXACT}{kind}": f"{EXACT}{kind}" for kind in kinds}
    spelled[SIGNED_BIAS] = SIGNED_BIAS
    stored = {kind: f"{name}.{end}" for kind, end in spelled.items() if f"{name}.{end}" in plan.checkpoint}
    plan.want(*stored.values())
    return name, stored


def _read_linear(
    checkpoint: Checkpoint,
    linear: LinearMap,
    layers: list[StoredLayer],
    input_name: str,
    behind_gelu: tuple[int, ...] = (),
) -> QuantizedLayer:
    """One host Linear from the checkpoint layers that it is made of, as want_layer returns them.

    Args:
        behind_gelu: sources whose biases are asked whether they hold the shift of unsigned activations.
    """
    found = [(name, read_rows(checkpoint, stored, linear, f"{checkpoint.name}: {name}")) for name, stored in layers]
    # of layers that are summed all but the last may keep a bias of their own
    kept = [t["bias"] for _, t in found[:-1] if "bias" in t] if linear.stack == "columns" else []
    arena = Arena(sum(room_for(tensors) for _, tensors in found) + sum(aligned(bias.nbytes) for bias in kept))
    parts = []
    for position, (name, tensors) in enumerate(found):
        where = f"{checkpoint.name}: {name}"
        if _is_modulation(tensors, linear):
            part, bias = unpack_modulation(tensors, max(linear.modulation_chunks, 1), where, arena)
        else:
            part, bias = unpack_layer(tensors, position in linear.unsigned, where, arena)
            if behind_gelu and position in behind_gelu:
                check_shift(part, bias, where)
        if bias is not None and linear.stack == "columns" and position < len(found) - 1 and holds_bits(bias):
            bias = arena.copy(bias)  # one of zeros is dropped
        parts.append((name, part, bias))
    if linear.alike and len(parts) > 1:
        joined = join_pieces([QuantizedLayer(p.in_features, p.out_features, (p,), b) for _, p, b in parts], alike=True)
        if joined is not None:
            parts = [(parts[0][0], joined.parts[0], joined.bias)]
    return combine(checkpoint.name, linear.stack, parts, arena=arena, has_bias=linear.bias, input_name=input_name)


def _is_modulation(tensors: dict[str, Tensor], linear: LinearMap) -> bool:
    smoothed = "smooth_factor" in tensors or "smooth_factor_orig" in tensors
    return "wzeros" in tensors or (bool(linear.modulation_chunks) and not smoothed)


def plan_outside_blocks(plan: Plan, prefix: str = "", spelling: Spelling | None = None) -> None:
    """Everything under diffusers' names, with that prefix, that lies outside the blocks and is not planned yet."""
    have = plan.hosts
    family, suffixes = plan.architecture, NEWER_SUFFIXES if spelling is None else spelling.suffixes

    def quantized(source: str) -> bool:
        return source.endswith(".weight") and f"{prefix}{source.removesuffix('weight')}qweight" in plan.checkpoint

    expected = family.expected_tensors(lambda host, source: prefix + source in plan.checkpoint or quantized(source))
    for host, source in expected.items():
        if plan.base is not None and prefix + source not in plan.checkpoint and not quantized(source):
            continue
        module, _, end = host.rpartition(".")
        if module in have:
            continue
        name = source.rpartition(".")[0]
        swapped = module in family.swapped_halves
        if quantized(source):
            whole = LinearMap("", ("",), swapped=swapped, bias=module not in family.without_bias)
            plan_quantized(plan, module, whole, [want_layer(plan, name, suffixes)])
        elif end != "bias" or not quantized(f"{name}.weight"):
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
