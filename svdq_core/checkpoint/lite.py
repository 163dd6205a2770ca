"""Reading what diffusers calls Nunchaku Lite: its own modules, each quantized on its own, in nunchaku's tile orders.

No module has unsigned activations, whatever its role, unless its bias holds their shift: such files exist, made of
nunchaku's. Modulation layers are in plain order and without the 1 in their bias.
Source: diffusers' Nunchaku Lite quantizer, and the exporter that it names.
"""

import json
from dataclasses import replace

import torch
from torch import Tensor

from ..arena import Arena
from ..errors import CheckpointError
from ..layer import QuantizedLayer
from ..models import Architecture, BlockMap, LinearMap
from ..models.layer_maps import Modules
from .assemble import combine
from .base_file import require_base
from .container import Checkpoint, lite_targets, read_json
from .nunchaku_layers import room_for, unpack_layer, unpack_modulation
from .nunchaku_names import NEWER_SUFFIXES, Spelling
from .nunchaku_read import check_counts, finish, plan_outside_blocks, plan_plain, plan_unquantized, want_layer
from .read_plan import Plan
from .recognize import recognize_source
from .shift_check import bias_says
from .source_rows import read_rows

ALIKE, SAME_SPREAD = 0.05, 1.2  # of every third bias of rows in plain order: difference of means, ratio of spreads
MANIFEST_SCHEMA = "nunchaku_lite.runtime_manifest"


def is_lite(checkpoint: Checkpoint) -> bool:
    """Whether a file with nunchaku's tensors is one of diffusers' kind: it says so, or only that kind is like this."""
    if lite_targets(checkpoint.metadata.get("config", "")):
        return True
    manifest = read_json(checkpoint, "quantization_config").get("runtime_manifest")
    if isinstance(manifest, dict) and manifest.get("schema") == MANIFEST_SCHEMA:
        return True
    split = (".to_q.qweight", ".add_q_proj.qweight", ".proj_out.qweight", ".proj_mlp.qweight")
    older = any(name.endswith((".lora_down", ".smooth")) for name in checkpoint)  # which this kind never has
    if not older and any(name.endswith(split) for name in checkpoint if ".attn2." not in name):
        return True
    factors = [name for name in checkpoint if name.endswith((".smooth", ".smooth_factor"))]
    bare = bool(factors) and not any(f"{name}_orig" in checkpoint for name in factors)
    return bare and factors[0].endswith("_factor") and not _has_plus_one(checkpoint) and not _is_fused(checkpoint)


def _is_fused(checkpoint: Checkpoint) -> bool:
    """Whether layers have names that only nunchaku's files have: diffuse-compressor writes such without the factors."""
    family = recognize_source(checkpoint.name, checkpoint)
    for block in family.blocks:
        for linear in block.linears:
            there = all(f"{block.source}.0.{source}.qweight" in checkpoint for source in linear.sources)
            if there and linear.sources not in block.alternatives(linear):
                return True
    return False


def _has_plus_one(checkpoint: Checkpoint) -> bool:
    """Whether a modulation's bias has 1 added to its scales, every third of interleaved rows, as only nunchaku does."""
    found = _thirds(checkpoint)
    return found is not None and float(found[1].mean() - found[0].mean()) > 0.5


def _thirds(checkpoint: Checkpoint) -> Tensor | None:
    """(3, n): every third bias of the first modulation, from the first, second and third on; None: there is no such."""
    name = next((n.removesuffix("wzeros") + "bias" for n in checkpoint if n.endswith(".wzeros")), "")
    if name not in checkpoint or len(checkpoint.shape(name)) != 1 or checkpoint.shape(name)[0] % 3:
        return None
    return checkpoint[name].float().view(-1, 3).T


def refuse_plain_modulation(checkpoint: Checkpoint, family: Architecture) -> None:
    """Raise CheckpointError where modulation should be interleaved and raised by 1, and its bias shows neither.

    Of rows in plain order every third is a sample of all: three samples with one mean and one spread.
    """
    interleaved = any(linear.modulation_chunks > 1 for block in family.blocks for linear in block.linears)
    found = _thirds(checkpoint) if interleaved else None
    if found is None or found.shape[1] < 2:
        return
    means, spreads = found.mean(dim=1), found.std(dim=1)
    if float(means.max() - means.min()) < ALIKE and float(spreads.max()) <= SAME_SPREAD * float(spreads.min()):
        raise CheckpointError(
            f"{checkpoint.name}: its layers are called as nunchaku's, but its modulation is not stored as nunchaku "
            "does: the biases of its scales have no 1 added, so that its rows seem to be in plain order. Read as "
            "nunchaku's it would be noise. Take a file of another publisher, and report this one."
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
    require_base(plan)
    counts = architecture.count_blocks(checkpoint, "source")
    check_counts(plan, counts)
    for block in architecture.blocks:
        for index in range(counts[block.host]):
            _plan_block(plan, block, index)
    plan_outside_blocks(plan)
    finish(plan)
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
    prefix = f"{block.source}.{index}"
    for linear in block.linears:
        host = f"{block.host}.{index}.{linear.host}"
        chosen = _modules(plan, prefix, block.alternatives(linear))
        if chosen != linear.sources:
            linear = replace(linear, sources=chosen, stack="rows", split=None, piece=None)
        modules = [f"{prefix}.{module}" for module in chosen]
        quantized = [f"{module}.qweight" in plan.checkpoint for module in modules]
        if all(quantized):
            layers = [want_layer(plan, module, NEWER_SUFFIXES) for module in modules]
            name = plan.architecture.input_name(host)
            plan.add(host, modules[0], lambda m=linear, s=layers, n=name: _read_linear(plan.checkpoint, m, s, n))
        elif any(quantized):
            raise CheckpointError(
                f"{plan.checkpoint.name}: {' and '.join(modules)} feed one layer of ComfyUI's model, but only some of "
                "them are quantized. Quantize all of them or none."
            )
        elif plan.base is not None and not any(f"{module}.weight" in plan.checkpoint for module in modules):
            continue
        elif linear.piece is not None or linear.swapped:
            plan_unquantized(plan, host, linear, modules)
        else:
            for end in ("weight", "bias") if linear.bias else ("weight",):
                plan.add_plain(f"{host}.{end}", [f"{module}.{end}" for module in modules])
    plan_plain(plan, block, index, Spelling(NEWER_SUFFIXES, plan.architecture.newer_names))


def _modules(plan: Plan, prefix: str, alternatives: tuple[Modules, ...]) -> tuple[str, ...]:
    """The alternative that the file has, else the first."""
    for modules in alternatives:
        if any(f"{prefix}.{modules[0]}.{end}" in plan.checkpoint for end in ("qweight", "weight")):
            return modules
    return alternatives[0]


def _read_linear(
    checkpoint: Checkpoint, linear: LinearMap, layers: list[tuple[str, dict[str, str]]], input_name: str
) -> QuantizedLayer:
    found = [(name, read_rows(checkpoint, stored, linear, f"{checkpoint.name}: {name}")) for name, stored in layers]
    arena, parts = Arena(sum(room_for(tensors) for _, tensors in found)), []
    for name, tensors in found:
        where = f"{checkpoint.name}: {name}"
        if tensors["qweight"].dtype == torch.int32:
            parts.append((name, *unpack_modulation(tensors, 1, where, arena)))
        else:
            part, bias = unpack_layer(tensors, False, where, arena)
            if linear.unsigned == (0,) and bias_says(part, bias):
                part = replace(part, act_unsigned=True)
            parts.append((name, part, bias))
    # what ComfyUI sums over two inputs, diffusers keeps as one module; what it stacks, diffusers keeps apart
    return combine(checkpoint.name, "rows", parts, arena=arena, has_bias=linear.bias, input_name=input_name)
