"""Other patches on a loaded model, where it lies.

The host's estimate-based patcher sends a whole model back to the CPU and loads it again when any patch changes. Ours
need nothing of the kind, and the few weights that the host patches itself (norms, biases, unquantized layers) are put
back and patched again one by one.
"""

import comfy.model_patcher
import comfy.utils
import torch

from .install import install


def exchange_patches(patcher, device: torch.device) -> None:
    """Make a loaded model carry this MODEL's patches; the host then finds nothing to do.

    Args:
        device: where it is loaded.
    """
    model = patcher.model
    if model.current_weight_patches_uuid in (None, patcher.patches_uuid):
        return
    wanted = patcher.other_patches()
    changed = {key for key, _ in wanted.items() ^ model.svdquant_loaded_patches.items()}
    wrappers = patcher.weight_wrapper_patches
    if wrappers != model.svdquant_loaded_wrappers or changed & wrappers.keys():
        return  # the host keeps functions of both kinds in one list; it reloads
    with patcher.use_ejected():
        patcher.unpatch_hooks()
        for key in sorted(changed):
            _repatch(patcher, key, device)
    install(patcher, device)
    model.svdquant_loaded_patches = wanted
    model.current_weight_patches_uuid = patcher.patches_uuid


def _repatch(patcher, key: str, device: torch.device) -> None:
    """Put the original of one weight back, and this MODEL's patches on it."""
    module_name, _, name = key.rpartition(".")
    module = comfy.utils.get_attr(patcher.model, module_name) if module_name else patcher.model
    backup = patcher.backup.pop(key, None)
    if backup is not None:
        where = comfy.utils.get_attr(patcher.model, key).device
        comfy.utils.set_attr_param(patcher.model, key, backup.weight.to(where))
    offloaded = hasattr(module, "comfy_cast_weights") and getattr(module, "comfy_patched_weights", None) is not True
    if not offloaded:
        patcher.patch_weight_to_device(key, device_to=device)
    elif hasattr(module, f"{name}_function"):
        patches = [comfy.model_patcher.LowVramPatch(key, patcher.patches)] if key in patcher.patches else []
        setattr(module, f"{name}_function", patches)
