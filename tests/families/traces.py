"""What tracing finds out about a family: its tiny model is traced, and the sizes are those of the published one."""

import re
from dataclasses import replace
from functools import cache

import comfy.ops
import torch
from families.network import without_memory
from families.registry import FAMILIES
from torch import nn

from svdquant_pack.nodes.host.quantize.noise_conditions import Request
from svdquant_pack.nodes.host.quantize.trace import find_blocks, trace_model
from svdquant_pack.nodes.host.quantize.watch import block_of
from svdquant_pack.svdq_core.quantize.model_plan import ModelPlan
from svdquant_pack.svdq_core.quantize.traced_layers import TracedLinear, TracedModel

# The first of VACE's blocks has a layer more: with two there is no repeated block.
MORE_BLOCKS = {"wan_vace": {"num_layers": 4, "vace_layers": 4}}


def model_without_memory(name: str):
    """ComfyUI's model of a family, tiny, on the meta device."""
    family = FAMILIES[name]
    config = family.detect(without_memory(family.published_shapes, torch.bfloat16))
    config.unet_config.update(family.tiny | MORE_BLOCKS.get(name, {}))
    config.set_inference_dtype(torch.bfloat16, None)
    config.custom_operations = comfy.ops.disable_weight_init
    return config.get_model({}, "", device="meta")


@cache
def tiny_trace(name: str) -> tuple[TracedModel, Request]:
    return trace_model(model_without_memory(name))


def published_trace(name: str) -> TracedModel:
    """The facts of the tiny model for every Linear of the published one."""
    family, (tiny, _) = FAMILIES[name], tiny_trace(name)
    network = family.build(family.published)
    lists, blocks = _lists(network), find_blocks(network)
    tiny_lists = _lists(family.build(family.tiny_config | MORE_BLOCKS.get(name, {})))
    facts: dict[str, TracedLinear] = {}
    for linear in tiny:
        facts.setdefault(_pattern(linear.name, tiny_lists), linear)
    linears = []
    for layer, module in network.named_modules():
        if isinstance(module, nn.Linear):
            fact, block = facts[_pattern(layer, lists)], block_of(layer, blocks)
            scale = module.in_features / fact.in_features
            linears.append(
                replace(
                    fact,
                    name=layer,
                    out_features=module.out_features,
                    in_features=module.in_features,
                    block=block,
                    stack=blocks.get(block, ""),
                    input_of=block + fact.input_of.removeprefix(fact.block),
                    gelu=tuple((round(a * scale), round(b * scale)) for a, b in fact.gelu),
                )
            )
    return TracedModel(tiny.title, sum(p.numel() for p in network.parameters()), tuple(linears))


def _lists(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, nn.ModuleList)}


def _pattern(name: str, lists: set[str]) -> str:
    """A name without the indices of lists."""
    words = name.split(".")
    return ".".join("*" if w.isdecimal() and ".".join(words[:i]) in lists else w for i, w in enumerate(words))


def facts_of(plan: ModelPlan) -> dict[str, list[str]]:
    """What a plan does, in few words: choice -> Linears with * for the numbers of blocks.

    w4a4 and w4a16; "gelu" and "gelu part": their input comes out of one, or some columns do; "one input": Linears that
    share it; everything else is a reason for 16 bits.
    """
    found: dict[str, dict[str, None]] = {}
    shared: dict[str, dict[str, None]] = {}

    def short(name: str, block: str) -> str:
        return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", block) + name.removeprefix(block)

    for layer in plan:
        name, choice = short(layer.name, layer.block), layer.why
        if layer.parts is not None:
            choice = "w4a16" if layer.is_modulation else "w4a4"
            behind = [part.after_gelu for part in layer.parts.parts]
            if any(behind):
                found.setdefault("gelu" if all(behind) else "gelu part", {})[name] = None
        found.setdefault(choice, {})[name] = None
        shared.setdefault(short(layer.group, layer.block), {})[name] = None
    found["one input"] = {", ".join(names): None for names in shared.values() if len(names) > 1}
    return {choice: sorted(names) for choice, names in found.items() if names}
