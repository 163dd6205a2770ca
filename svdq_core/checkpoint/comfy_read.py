"""Reading comfy-native files: the host's own names, each layer with a small JSON that says how it is stored."""

from ..errors import CheckpointError
from ..layer import QuantizedLayer
from ..models import LinearMap
from .assemble import combine
from .comfy_layers import unpack_awq, unpack_svdquant
from .comfy_names import AWQ, CONFIG, CONFIGS, PART, STACKED, SVDQUANT, find_tensors, layer_configs
from .container import Checkpoint
from .read_plan import Plan, has_bias, plain_names, plan_rest
from .recognize import recognize_host

_ONE_PIECE = LinearMap("", ("",))


def plan_comfy(checkpoint: Checkpoint) -> Plan:
    """The plan for a file with svdquant_w4a4 or awq_w4a16 layers.

    Raises:
        CheckpointError: the model is of an unknown family, or a layer is in a format that is not read here.
    """
    configs = layer_configs(checkpoint)
    for layer, config in configs.items():
        if config["format"] not in (SVDQUANT, AWQ):
            raise CheckpointError(
                f"{checkpoint.name}: {layer} is stored as {config['format']!r}, expected {SVDQUANT} or {AWQ}. ComfyUI "
                "itself may load this file with Load Diffusion Model."
            )
    architecture = recognize_host(checkpoint.name, checkpoint)
    metadata = {key: text for key, text in checkpoint.metadata.items() if key != CONFIGS}
    plan = Plan(checkpoint, architecture, metadata)
    if architecture.generic:
        for layer in dict.fromkeys(name.partition(f".{PART}.")[0] for name in configs):
            _plan_linear(plan, configs, layer, _ONE_PIECE)
        plan_rest(plan)
        return plan
    counts = architecture.count_blocks(checkpoint, "host")
    for host, linear in architecture.linears(counts):
        _plan_linear(plan, configs, host, linear)
    for block in architecture.blocks:
        for index in range(counts[block.host]):
            for name in plain_names(plan, block, index):
                _plan_plain(plan, f"{block.host}.{index}.{name}")
    expected = architecture.expected_tensors(lambda host, source: host in checkpoint)
    for module in architecture.modules:
        if f"{module}.weight" in expected:
            _plan_linear(plan, configs, module, _ONE_PIECE)
    for name in (n for n in architecture.tensors if n in expected):
        _plan_plain(plan, name)
    return plan


def _plan_plain(plan: Plan, host: str) -> None:
    """A tensor under its name, or the one that older hosts give it."""
    for newer, older in plan.architecture.older_tensors.items():
        if host not in plan.checkpoint and host.endswith(newer):
            former = host.removesuffix(newer) + older
            plan.add_plain(host, [former if former in plan.checkpoint else host])
            return
    plan.add_plain(host, [host])


def _plan_linear(plan: Plan, configs: dict[str, dict], host: str, linear: LinearMap) -> None:
    names = [host] if host in configs else []
    while f"{host}.{PART}.{len(names)}" in configs and host not in configs:
        names.append(f"{host}.{PART}.{len(names)}")
    if not names:
        for end in ("weight", "bias") if has_bias(plan, host) else ("weight",):
            plan.add_plain(f"{host}.{end}", [f"{host}.{end}"])
        return
    layers = [(name, find_tensors(plan.checkpoint, name, configs[name]["format"]), configs[name]) for name in names]
    for name, stored, _ in layers:
        plan.want(*stored.values())
        if f"{name}.{CONFIG}" in plan.checkpoint:
            plan.want(f"{name}.{CONFIG}")
    biased = has_bias(plan, host) if not plan.architecture.generic else "bias" in layers[-1][1]
    plan.add(host, names[0], lambda: _read_linear(plan.checkpoint, linear, layers, biased))


def _read_linear(
    checkpoint: Checkpoint, linear: LinearMap, layers: list[tuple[str, dict[str, str], dict]], biased: bool
) -> QuantizedLayer:
    parts = []
    for name, stored, config in layers:
        tensors, where = {kind: checkpoint[full] for kind, full in stored.items()}, f"{checkpoint.name}: {name}"
        if config["format"] == AWQ:
            parts.append((name, *unpack_awq(tensors, config, where)))
            continue
        joined, bias = unpack_svdquant(tensors, config, where)
        if len(joined) > 1 and len(layers) > 1:
            raise CheckpointError(f"{where}: is a part of a layer and made of parts itself. The file is damaged.")
        if len(joined) > 1:
            layer = QuantizedLayer(joined[0].in_features, joined[-1].rows[1], tuple(joined), bias)
            return _checked(layer, where) if biased else layer
        parts.append((name, joined[0], bias))
    # what no family describes, its own config does
    stack = layers[0][2].get(STACKED) if linear is _ONE_PIECE else linear.stack
    return combine(
        checkpoint.name, "columns" if stack == "columns" and len(parts) > 1 else "rows", parts, has_bias=biased
    )


def _checked(layer: QuantizedLayer, where: str) -> QuantizedLayer:
    if layer.bias is None:
        raise CheckpointError(f"{where}: bias is missing. The file is incomplete; download it again.")
    return layer
