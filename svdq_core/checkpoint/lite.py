"""Reading what diffusers calls Nunchaku Lite: its own modules, each quantized on its own, in nunchaku's tile orders.

No module has unsigned activations, whatever its role; modulation layers are in plain order and without the 1 in their
bias.
Source: diffusers' Nunchaku Lite quantizer, and the exporter that it names.
"""

import json

import torch

from ..arena import Arena
from ..errors import CheckpointError
from ..layer import QuantizedLayer
from ..models import BlockMap
from .assemble import combine
from .container import Checkpoint, lite_targets, read_json
from .nunchaku_layers import MODULATION_TENSORS, SVDQUANT_TENSORS, room_for, unpack_layer, unpack_modulation
from .nunchaku_names import NEWER_SUFFIXES
from .nunchaku_read import check_counts, plan_outside_blocks, want_layer
from .read_plan import Plan
from .recognize import recognize_source

MANIFEST_SCHEMA = "nunchaku_lite.runtime_manifest"
_SPLIT, _FUSED = ("attn.to_q", "attn.to_k", "attn.to_v"), ("attn.to_qkv",)

# architecture -> block prefix in the file -> host Linear -> the diffusers modules that it is made of, alternatives
LITE_MODULES = {
    "flux": {
        "transformer_blocks": {
            "img_mod.lin": [("norm1.linear",)],
            "txt_mod.lin": [("norm1_context.linear",)],
            "img_attn.qkv": [_SPLIT, _FUSED],
            "txt_attn.qkv": [
                ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                ("attn.to_added_qkv",),
                ("attn.add_qkv_proj",),
            ],
            "img_attn.proj": [("attn.to_out.0",)],
            "txt_attn.proj": [("attn.to_add_out",)],
            "img_mlp.0": [("ff.net.0.proj",)],
            "img_mlp.2": [("ff.net.2",)],
            "txt_mlp.0": [("ff_context.net.0.proj",)],
            "txt_mlp.2": [("ff_context.net.2",)],
        },
        "single_transformer_blocks": {
            "modulation.lin": [("norm.linear",)],
            "linear1": [(*_SPLIT, "proj_mlp"), (*_FUSED, "proj_mlp")],
            "linear2": [("proj_out",)],
        },
    },
    "pixart": {
        "transformer_blocks": {
            "attn.qkv": [("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("attn1.to_qkv",)],
            "attn.proj": [("attn1.to_out.0",)],
            "cross_attn.q_linear": [("attn2.to_q",)],
            "cross_attn.proj": [("attn2.to_out.0",)],
            "mlp.fc1": [("ff.net.0.proj",)],
            "mlp.fc2": [("ff.net.2",)],
        }
    },
}


def is_lite(checkpoint: Checkpoint) -> bool:
    """Whether a file with nunchaku's tensors is one of diffusers' kind: it says so, or only that kind is like this."""
    if lite_targets(checkpoint.metadata.get("config", "")):
        return True
    manifest = read_json(checkpoint, "quantization_config").get("runtime_manifest")
    if isinstance(manifest, dict) and manifest.get("schema") == MANIFEST_SCHEMA:
        return True
    split = (".to_q.qweight", ".add_q_proj.qweight", ".proj_out.qweight", ".proj_mlp.qweight")
    if any(name.endswith(split) for name in checkpoint if ".attn2." not in name):
        return True
    factors = [name for name in checkpoint if name.endswith((".smooth", ".smooth_factor"))]
    return (
        bool(factors) and not any(f"{name}_orig" in checkpoint for name in factors) and factors[0].endswith("_factor")
    )


def refuse_logical(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where diffuse-compressor says that it did not put the tensors into tiles.

    Names and shapes are those of tensors in tiles; only what stands in the metadata, or in the config beside the file,
    tells them apart.
    """
    said = [(text, key) for key, text in checkpoint.metadata.items() if key == "quantization_config"]
    for text, place in [*said, (checkpoint.sidecar(), "the config beside it")]:
        for name in _logical_targets(text):
            raise CheckpointError(
                f"{checkpoint.name}: {name} is in diffuse-compressor's logical layout ({place}), which is for checking "
                "a quantization and not read here. Export the model again with its NunchakuSvdqLayout."
            )


def _logical_targets(text: str) -> list[str]:
    try:
        targets = json.loads(text)["targets"]
        return [str(t.get("export_name")) for t in targets if t.get("runtime_tensor_layout") == "logical"]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return []


def plan_lite(checkpoint: Checkpoint) -> Plan:
    """The plan for a file or folder of diffusers' Nunchaku Lite.

    Raises:
        CheckpointError: the model is of an unknown family, or has fewer blocks than it announces.
    """
    architecture = recognize_source(checkpoint.name, checkpoint)
    plan = Plan(checkpoint, architecture, metadata=_metadata(checkpoint))
    counts = architecture.count_blocks(checkpoint, "source")
    check_counts(plan, counts)
    for block in architecture.blocks:
        for index in range(counts[block.host]):
            _plan_block(plan, block, index)
    plan_outside_blocks(plan)
    return plan


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Without what speaks of diffusers' own way of storing the model."""
    kept = {key: text for key, text in checkpoint.metadata.items() if key != "quantization_config"}
    if "config" in kept:
        config = read_json(checkpoint, "config")
        config.pop("quantization_config", None)
        kept["config"] = json.dumps(config)
    return kept


def _plan_block(plan: Plan, block: BlockMap, index: int) -> None:
    spelled = plan.architecture.newer_names.get(block.source, {})
    prefix, table = f"{block.source}.{index}", LITE_MODULES[plan.architecture.name][block.source]
    for linear in block.linears:
        host = f"{block.host}.{index}.{linear.host}"
        modules = [f"{prefix}.{module}" for module in _modules(plan, prefix, table[linear.host])]
        quantized = [f"{module}.qweight" in plan.checkpoint for module in modules]
        if all(quantized):
            layers = [_want(plan, module) for module in modules]
            plan.add(host, modules[0], lambda layers=layers: _read_linear(plan.checkpoint, layers))
        elif any(quantized):
            raise CheckpointError(
                f"{plan.checkpoint.name}: {' and '.join(modules)} feed one layer of ComfyUI's model, but only some of "
                "them are quantized. Quantize all of them or none."
            )
        else:
            for end in ("weight", "bias"):
                plan.add_plain(f"{host}.{end}", [f"{module}.{end}" for module in modules])
    for host, sources in block.plain.items():
        names = [f"{prefix}.{spelled.get(source, source)}" for source in sources]
        plan.add_plain(f"{block.host}.{index}.{host}", names)


def _modules(plan: Plan, prefix: str, alternatives: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The alternative that the file has, else the first."""
    for modules in alternatives:
        if any(f"{prefix}.{modules[0]}.{end}" in plan.checkpoint for end in ("qweight", "weight")):
            return modules
    return alternatives[0]


def _want(plan: Plan, module: str) -> tuple[str, dict[str, str]]:
    integer = plan.checkpoint.dtype(f"{module}.qweight") == "I32"
    return want_layer(plan, module, NEWER_SUFFIXES, MODULATION_TENSORS if integer else SVDQUANT_TENSORS)


def _read_linear(checkpoint: Checkpoint, layers: list[tuple[str, dict[str, str]]]) -> QuantizedLayer:
    found = [(name, {kind: checkpoint[full] for kind, full in stored.items()}) for name, stored in layers]
    arena, parts = Arena(sum(room_for(tensors) for _, tensors in found)), []
    for name, tensors in found:
        where = f"{checkpoint.name}: {name}"
        if tensors["qweight"].dtype == torch.int32:
            parts.append((name, *unpack_modulation(tensors, 1, where, arena)))
        else:
            parts.append((name, *unpack_layer(tensors, False, where, arena)))
    # what the host sums over two inputs, diffusers keeps as one module; what the host stacks, it keeps apart
    return combine(checkpoint.name, "rows", parts, arena)
