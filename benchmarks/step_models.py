"""A model of random weights as ComfyUI's MODEL, of any family, in every format that a step is timed with.

BF16, ComfyUI's own fp8, int8 and ConvRot formats, weight-only 4 bits, and ours: each is ComfyUI's own model class with
other Linears.
"""

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from random_flux import Draw
from step_subject import Subject, torch_device

if TYPE_CHECKING:
    import torch

    from svdquant_pack.svdq_core.quantize.model_plan import PlannedLayer

OURS = ("w4a8", "w4a4", "w4a16")
HOSTS = {
    "fp8": ("ComfyUI fp8 scaled", "float8_e4m3fn"),
    "int8": ("ComfyUI int8", "int8_tensorwise"),
    "int8-convrot": ("ComfyUI int8 ConvRot", "int8_tensorwise"),
    "w4a4-convrot": ("ComfyUI ConvRot W4A4", "convrot_w4a4"),
}
WEIGHT_ONLY = {"gguf-q4": "GGUF Q4_0, unpacked in each call", "nf4": "NF4, unpacked in each call"}
FORMATS = ("bf16", *HOSTS, *WEIGHT_ONLY, *OURS)
CONVROT_GROUP = 256
LORA_RANK = 16


def title(name: str, options: argparse.Namespace) -> str:
    """What a format is called in a table."""
    if name == "bf16":
        return "BF16"
    if name in OURS:
        return f"ours {name}, rank {options.rank}"
    return HOSTS[name][0] if name in HOSTS else WEIGHT_ONLY[name]


def make_model(name: str, subject: Subject):
    """ComfyUI's MODEL in a format, weights on options.device."""
    import comfy.model_management
    import comfy.model_patcher

    from svdquant_pack.nodes.host.model.build import finish
    from svdquant_pack.nodes.host.quantize.replica import move_attributes

    device = torch_device(subject.options)
    if name == "bf16":
        model = _dense(subject)
    elif name in HOSTS:
        model = _hosts_format(name, subject)
    elif name in WEIGHT_ONLY:
        model = _weight_only(name, subject)
    else:
        model = _ours(name, subject)
    network = model.diffusion_model.requires_grad_(False).eval().to(device)
    move_attributes(network, device)
    comfy.model_management.archive_model_dtypes(network)
    model.device = device
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
    if name in OURS:
        patcher = finish(patcher, name, device)
        model.svdquant_unused = {}
    return patcher


def add_lora(patcher, subject: Subject):
    """A clone with a random LoRA on every quantized layer."""
    from comfy.weight_adapter.lora import LoRAAdapter

    draw, clone = Draw(subject.options.device, seed=2), patcher.clone()
    patches: dict[str, Any] = {}
    for layer in subject.layers:
        down = draw.normal(LORA_RANK, layer.in_features, scale=layer.in_features**-0.5)
        up = draw.normal(layer.out_features, LORA_RANK, scale=0.02)
        adapter = LoRAAdapter(set(), (up, down, float(LORA_RANK), None, None, None))
        patches[f"diffusion_model.{layer.name}.weight"] = adapter
    if len(clone.add_patches(patches, 1.0)) != len(patches):
        raise SystemExit("ComfyUI's model has changed: not all layers take a LoRA.")
    return clone


def _random(name: str, like: "torch.Tensor", draw: Draw) -> "torch.Tensor":
    """A tensor of the 16-bit model, so that activations neither vanish nor explode."""
    import torch

    end, shape = name.rpartition(".")[2], like.shape
    if end == "inv_freq":
        return 100.0 ** -torch.linspace(0, 1, shape[0], device=draw.device)
    if "norm" in name and end in ("weight", "scale"):
        return torch.ones(shape, device=draw.device, dtype=like.dtype)
    return draw.normal(*shape, scale=0.02 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5).to(like.dtype)


def _fill(model, state: dict[str, Any], draw: Draw, subject: Subject, known: tuple[str, ...] = ()):
    """Load a state dict of the quantized layers, and random weights for all others."""
    planned = {f"{layer.name}.{end}" for layer in subject.layers for end in ("weight", "bias")}
    network = model.diffusion_model
    state |= {n: _random(n, like, draw) for n, like in subject.tensors.items() if n not in planned}
    missing, unexpected = network.load_state_dict(state, strict=False, assign=True)
    if missing or [name for name in unexpected if not name.endswith(known)]:
        raise SystemExit(f"ComfyUI's model has changed: {missing[:3]} missing, {unexpected[:3]} unexpected.")
    return model


def _dense(subject: Subject):
    import comfy.ops

    draw = Draw(subject.options.device)
    model = subject.build(comfy.ops.disable_weight_init, "cpu")  # no memory is taken by what is never written
    state = {name: _random(name, like, draw) for name, like in subject.tensors.items()}
    return _fill(model, state, draw, subject)


def _biases(subject: Subject, draw: Draw, layer: "PlannedLayer") -> dict[str, "torch.Tensor"]:
    """{name: bias} of a layer, empty if it has none."""
    name = f"{layer.name}.bias"
    return {name: draw.normal(layer.out_features, scale=0.02)} if name in subject.tensors else {}


def _hosts_format(name: str, subject: Subject):
    """One of ComfyUI's own quantized formats, as its loaders read them."""
    import comfy.ops
    import torch
    from comfy.quant_ops import get_layout_class

    fmt, draw, state = HOSTS[name][1], Draw(subject.options.device), {}
    model = subject.build(comfy.ops.mixed_precision_ops({}, torch.bfloat16), "cpu")
    for layer in subject.layers:
        n, k = layer.out_features, layer.in_features
        weight = draw.normal(n, k, scale=k**-0.5)
        config: dict[str, Any] = {"format": fmt}
        if fmt == "float8_e4m3fn":
            scale = weight.abs().amax().float() / torch.finfo(torch.float8_e4m3fn).max
            codes = (weight.float() / scale).to(torch.float8_e4m3fn)
        elif fmt == "int8_tensorwise":
            more: dict[str, Any] = {"per_channel": True}
            if name == "int8-convrot":
                rotation = {"convrot": True, "convrot_groupsize": CONVROT_GROUP}
                config |= rotation
                more |= {"is_weight": True, **rotation}
            codes, parameters = get_layout_class("TensorWiseINT8Layout").quantize(weight, **more)
            scale = parameters.scale
        else:
            config["convrot_groupsize"] = CONVROT_GROUP
            codes, parameters = get_layout_class("TensorCoreConvRotW4A4Layout").quantize(weight)
            scale = parameters.scale
        state[f"{layer.name}.weight"], state[f"{layer.name}.weight_scale"] = codes, scale
        state[f"{layer.name}.comfy_quant"] = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)
        state |= _biases(subject, draw, layer)
    return _fill(model, state, draw, subject, ("comfy_quant",))


def _weight_only(name: str, subject: Subject):
    import comfy.ops
    import torch
    from weight_only import NF4_BLOCK, Q4_0_BLOCK, NF4Linear, Q4Linear

    device = subject.options.device
    draw, state = Draw(device), {}
    model = subject.build(comfy.ops.disable_weight_init, "cpu")
    for layer in subject.layers:
        n, k = layer.out_features, layer.in_features
        codes, bias = draw.codes(n, k).view(torch.uint8), next(iter(_biases(subject, draw, layer).values()), None)
        if name == "nf4":
            linear = NF4Linear(codes, torch.full((n, k // NF4_BLOCK), 2.5 * k**-0.5, device=device), bias)
        else:
            scales = torch.full((n, k // Q4_0_BLOCK), 0.22 * k**-0.5, device=device, dtype=torch.float16)
            linear = Q4Linear(codes, scales, bias)
        parent, _, child = layer.name.rpartition(".")
        setattr(model.diffusion_model.get_submodule(parent), child, linear)
        state |= {f"{layer.name}.{key}": tensor for key, tensor in linear.state_dict().items()}
    return _fill(model, state, draw, subject)


def _ours(mode: str, subject: Subject):
    import torch

    from svdquant_pack.nodes.host.model.placeholder import Packed, placeholder
    from svdquant_pack.nodes.host.model.quantized_linear import operations
    from svdquant_pack.svdq_core.blob import to_blob
    from svdquant_pack.svdq_core.runtime import with_derived

    options, state, inputs = subject.options, {}, {}
    draw = Draw(options.device, options.rank)
    model = subject.build(operations(mode), "cpu")
    for planned in subject.layers:
        layer = with_derived(subject.random_layer(draw, planned, inputs), mode, torch_device(options))
        state[f"{planned.name}.weight"] = placeholder(Packed(*to_blob(layer)), torch.bfloat16)
        if layer.bias is not None:
            state[f"{planned.name}.bias"] = layer.bias
    return _fill(model, state, draw, subject)
