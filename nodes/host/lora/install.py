"""LoRAs of a MODEL onto its layers: only what differs from what lies there is made, on the device that will use it."""

import comfy.hooks
import torch

from ..model.quantized_linear import SVDQuantLinear
from .factors import build_lora
from .plan import LoraPlan, plan_lora

LARGEST_SPARE_COUNT = 4  # states that hooks switch between, kept for each layer


def install(patcher, device: torch.device, hook_patches: dict | None = None, clear: bool = False) -> None:
    """Put a MODEL's patches on its quantized layers, or take all off.

    Args:
        device: where factors are made.
        hook_patches: weight key -> patches of the hooks that are active now, on top; None without hooks.
        clear: leave nothing, whatever the patches are.
    """
    model = patcher.model
    installed = None if hook_patches or clear else patcher.patches_uuid
    if installed is None or installed != model.svdquant_installed:
        keep_spares = bool(hook_patches or model.svdquant_hooked) and not clear and _caches_hooks(patcher)
        for key, module in patcher.svdquant_layers().items():
            keys = key, bias_key(key)
            patches = [[] if clear else patcher.patches.get(k, []) + (hook_patches or {}).get(k, []) for k in keys]
            if any(patches) or module.lora is not None:
                plan = plan_lora(*patches) if hook_patches or clear else plans_of(patcher).get(key)
                _install_layer(patcher, module, plan, device, keep_spares)
            if not keep_spares:
                module.lora_spares.clear()
        model.svdquant_installed = installed
    if patcher.is_dynamic() and not clear:
        move_factors(patcher, device)  # the host would copy them from the CPU again for every prompt


def bias_key(weight_key: str) -> str:
    """The host's name of the bias that belongs to a weight."""
    return weight_key.removesuffix("weight") + "bias"


def compute_dtype(patcher) -> torch.dtype:
    """What activations are in: the host runs text encoders, which do not say, in float32."""
    inference = getattr(patcher.model, "get_dtype_inference", None)
    return torch.float32 if inference is None else inference()


def _caches_hooks(patcher) -> bool:
    return patcher.hook_mode == comfy.hooks.EnumHookMode.MaxSpeed


def _install_layer(
    patcher, module: SVDQuantLinear, plan: LoraPlan | None, device: torch.device, keep_spares: bool
) -> None:
    old, dtype = module.lora, compute_dtype(patcher)
    before = factor_bytes(module)
    tensors = module.lora_tensors()
    same_dtype = all(t.dtype == dtype for name, t in tensors.items() if name != "lora_bias")
    if plan is not None and old is not None and plan.signature == old.signature and same_dtype:
        return
    if keep_spares and old is not None and len(module.lora_spares) < LARGEST_SPARE_COUNT:
        module.lora_spares[old.signature] = tensors
    made = {}
    if plan is not None and plan.signature in module.lora_spares:
        made = module.lora_spares[plan.signature]
    elif plan is not None:
        made = build_lora(
            plan,
            lambda: module.layer_on(device),
            (module.in_features, module.out_features),
            device=device,
            dtype=dtype,
            old=old if same_dtype else None,
            tensors={name: tensor.to(device) for name, tensor in tensors.items()},
            in_place=not keep_spares,
        )
        # the host moves a layer with all that it has; under dynamic VRAM the weight stays and is paged
        place = device if patcher.is_dynamic() else module.weight.device
        made = {name: tensor.to(place) for name, tensor in made.items()}
    module.install_lora(plan, made)
    if getattr(module, "comfy_patched_weights", False) is True and not patcher.is_dynamic():
        patcher.model.model_loaded_weight_memory += factor_bytes(module) - before


def move_factors(patcher, device: torch.device) -> None:
    """Bring what LoRAs have added to a device."""
    for module in patcher.svdquant_layers().values():
        if module.lora is not None:
            module.install_lora(module.lora, {name: t.to(device) for name, t in module.lora_tensors().items()})


def factor_bytes(module: SVDQuantLinear) -> int:
    """What LoRAs take on a layer now."""
    return sum(tensor.nbytes for tensor in module.lora_tensors().values())


def planned_bytes(patcher) -> int:
    """What the LoRAs of a MODEL take on its quantized layers, installed or not."""
    layers, itemsize = patcher.svdquant_layers(), compute_dtype(patcher).itemsize
    return sum(
        plan.nbytes(layers[key].in_features, layers[key].out_features, itemsize)
        for key, plan in plans_of(patcher).items()
        if plan is not None and key in layers
    )


def plans_of(patcher) -> dict[str, LoraPlan | None]:
    """Weight key -> what the MODEL's patches need on that quantized layer; made once for each set of patches."""
    uuid, plans = patcher.__dict__.get("svdquant_plans", (None, {}))
    if uuid != patcher.patches_uuid:
        patches = patcher.patches
        plans = {
            key: plan_lora(patches.get(key, []), patches.get(bias_key(key), []))
            for key in patcher.svdquant_layers()
            if key in patches or bias_key(key) in patches
        }
        patcher.svdquant_plans = patcher.patches_uuid, plans
    return plans
