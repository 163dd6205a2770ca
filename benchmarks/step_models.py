"""A FLUX.1 of random weights as the host's MODEL, in every format that a step is timed with.

build(row, options) -> Contender: BF16, the host's own fp8, int8 and ConvRot formats, weight-only 4 bits, and ours. Each
is the host's own model class; what differs is the class of its Linears.
"""

import argparse
import json
from typing import TYPE_CHECKING, Any

from random_flux import HEAD, Draw, linears, norms, plain_linears

if TYPE_CHECKING:
    import torch

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


def make_model(name: str, options: argparse.Namespace):
    """The host's MODEL in a format, weights on options.device."""
    if name == "bf16":
        flux = _dense(options)
    elif name in HOSTS:
        flux = _hosts_format(name, options)
    elif name in WEIGHT_ONLY:
        flux = _weight_only(name, options)
    else:
        flux = _ours(name, options)
    return _as_patcher(flux.requires_grad_(False).eval(), options, ours=name in OURS)


def _as_patcher(flux: "torch.nn.Module", options: argparse.Namespace, ours: bool):
    import comfy.model_base
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    from svdquant_pack.nodes.host.model.patcher import adopt

    shape = {"image_model": "flux", "guidance_embed": True, "in_channels": 16, "out_channels": 16}
    config = comfy.supported_models.Flux({**shape, "dtype": torch.bfloat16, "disable_unet_model_creation": True})
    config.set_inference_dtype(torch.bfloat16, None)
    device = torch.device(options.device)
    model = comfy.model_base.Flux(config, device=device)
    model.diffusion_model = flux
    comfy.model_management.archive_model_dtypes(flux)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
    model.device = device
    if ours:
        patcher = adopt(patcher)
        model.svdquant_unused = {}
    return patcher


def add_lora(patcher, options: argparse.Namespace):
    """A clone with a random LoRA on every quantized layer."""
    from comfy.weight_adapter.lora import LoRAAdapter

    draw, clone = Draw(options.device, seed=2), patcher.clone()
    patches: dict[str, Any] = {}
    for name, (n, k) in linears(options.depth, options.singles, options.hidden).items():
        down, up = draw.normal(LORA_RANK, k, scale=k**-0.5), draw.normal(n, LORA_RANK, scale=0.02)
        patches[f"diffusion_model.{name}.weight"] = LoRAAdapter(set(), (up, down, float(LORA_RANK), None, None, None))
    if len(clone.add_patches(patches, 1.0)) != len(patches):
        raise SystemExit("The host's model has changed: not all layers take a LoRA.")
    return clone


def _empty(operations, options: argparse.Namespace, device: str):
    import comfy.ldm.flux.model
    import torch

    return comfy.ldm.flux.model.Flux(
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=4096,
        hidden_size=options.hidden,
        mlp_ratio=4.0,
        num_heads=options.hidden // HEAD,
        depth=options.depth,
        depth_single_blocks=options.singles,
        axes_dim=[16, 56, 56],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=True,
        txt_ids_dims=[],
        dtype=torch.bfloat16,
        device=device,
        operations=operations,
    )


def _dense(options: argparse.Namespace):
    import comfy.ops
    import torch

    model, draw = _empty(comfy.ops.disable_weight_init, options, options.device), Draw(options.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(draw.normal(*parameter.shape, scale=parameter.shape[1] ** -0.5))
            else:
                parameter.fill_(1.0) if "norm" in name else parameter.copy_(draw.normal(*parameter.shape, scale=0.02))
    return model


def _fill(model, state: dict[str, Any], draw: Draw, options: argparse.Namespace, known: tuple[str, ...] = ()):
    """Load a state dict of the quantized layers, and random weights for all others."""
    import torch

    for name, (n, k) in plain_linears(options.hidden).items():
        state[f"{name}.weight"], state[f"{name}.bias"] = draw.normal(n, k, scale=k**-0.5), draw.normal(n, scale=0.02)
    state |= {n: torch.ones(HEAD, device=options.device).bfloat16() for n in norms(options.depth, options.singles)}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if missing or [name for name in unexpected if not name.endswith(known)]:
        raise SystemExit(f"The host's model has changed: {missing[:3]} missing, {unexpected[:3]} unexpected.")
    return model


def _hosts_format(name: str, options: argparse.Namespace):
    """One of the host's own quantized formats, as its loaders read them."""
    import comfy.ops
    import torch
    from comfy.quant_ops import get_layout_class

    fmt, draw, state = HOSTS[name][1], Draw(options.device), {}
    model = _empty(comfy.ops.mixed_precision_ops({}, torch.bfloat16), options, options.device)
    for layer, (n, k) in linears(options.depth, options.singles, options.hidden).items():
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
        state[f"{layer}.weight"], state[f"{layer}.weight_scale"] = codes, scale
        state[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)
        state[f"{layer}.bias"] = draw.normal(n, scale=0.02)
    return _fill(model, state, draw, options, ("comfy_quant",))


def _weight_only(name: str, options: argparse.Namespace):
    import comfy.ops
    import torch
    from weight_only import NF4_BLOCK, Q4_0_BLOCK, NF4Linear, Q4Linear

    draw, state = Draw(options.device), {}
    model = _empty(comfy.ops.disable_weight_init, options, "meta")
    for layer, (n, k) in linears(options.depth, options.singles, options.hidden).items():
        codes, bias = draw.codes(n, k).view(torch.uint8), draw.normal(n, scale=0.02)
        if name == "nf4":
            scales = torch.full((n, k // NF4_BLOCK), 2.5 * k**-0.5, device=options.device)
            linear = NF4Linear(codes, scales, bias)
        else:
            scales = torch.full((n, k // Q4_0_BLOCK), 0.22 * k**-0.5, device=options.device, dtype=torch.float16)
            linear = Q4Linear(codes, scales, bias)
        parent, _, child = layer.rpartition(".")
        setattr(model.get_submodule(parent), child, linear)
        state |= {f"{layer}.{key}": tensor for key, tensor in linear.state_dict().items()}
    return _fill(model, state, draw, options)


def _ours(mode: str, options: argparse.Namespace):
    import torch

    from svdquant_pack.nodes.host.model.fold import fold_gelus, speed_up_gelus, wants_folding
    from svdquant_pack.nodes.host.model.placeholder import Packed, placeholder
    from svdquant_pack.nodes.host.model.quantized_linear import operations
    from svdquant_pack.svdq_core.blob import to_blob
    from svdquant_pack.svdq_core.runtime import folds_gelu, with_derived

    device, draw, state = torch.device(options.device), Draw(options.device, options.rank), {}
    model = _empty(operations(mode), options, options.device)
    for name, size in linears(options.depth, options.singles, options.hidden).items():
        layer = with_derived(draw.layer(name, *size), mode, device)
        state[f"{name}.weight"] = placeholder(Packed(*to_blob(layer)), torch.bfloat16)
        state[f"{name}.bias"] = layer.bias
    model = _fill(model, state, draw, options)
    where = wants_folding(folds_gelu(device, mode))
    if where:
        fold_gelus(model, where)
    speed_up_gelus(model)
    return model
