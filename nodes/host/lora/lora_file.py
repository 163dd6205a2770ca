"""A LoRA file applied to a MODEL, with an account of what matched."""

import math
from collections.abc import Iterable

import comfy.lora
import comfy.utils
import torch
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ....svdq_core.errors import LoraError, SVDQuantError
from .family_names import family_title
from .identity import is_finite, tensors_in
from .lora_report import LoraReport, ignored_keys, refuse_nothing, refuse_quantized_model, weight_key
from .misfit import beyond, misfit, shown
from .open_file import forget_lora, open_lora, shown_name
from .patches import resizes
from .spellings import split_key, to_host_names


def apply_lora_file(patcher, path: str, strength: float):
    """A copy of the MODEL with a LoRA, and the report; at strength 0 nothing is applied.

    Raises:
        LoraError: the file cannot be read, nothing in it fits the model, or a 4-bit layer cannot take something of it.
    """
    name = shown_name(path)
    if not math.isfinite(strength):
        raise LoraError(f"{name}: the strength is {strength:g}. Give a number.")
    stored = open_lora(path)
    try:
        return _apply(patcher, name, stored, strength)
    except SVDQuantError as error:
        forget_lora(path)
        raise error if str(error).startswith(f"{name}:") else LoraError(f"{name}: {error}") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a damaged or hostile file leads to, in the host's code or in ours
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no reason given'}"
        raise LoraError(
            f"{name}: cannot be applied to this {family_title(patcher)} model ({reason}). The file is damaged, "
            "or of a kind that is not known here. Nothing was applied."
        ) from error


def _apply(patcher, name: str, stored: dict[str, Tensor], strength: float):
    refuse_quantized_model(name, stored)
    keys_of_tensors = {id(tensor): key for key, tensor in stored.items()}
    targets = comfy.lora.model_lora_keys_unet(patcher.model, {})
    lora = to_host_names(dict(stored), targets, patcher)
    patches = _load(lora, targets)
    empty = {weight_key(target) for target, value in patches.items() if _is_empty(value)}
    patches = {target: value for target, value in patches.items() if not _is_empty(value)}
    skipped = _misfits(patcher, patches)
    for target in skipped:
        del patches[target]
    _refuse_not_finite(patches, keys_of_tensors)
    copy = patcher.clone()
    applied = copy.add_patches(patches, strength)
    left_out = {shown(weight_key(target)): reason for target, reason in skipped.items()}
    if not applied and not empty:
        raise refuse_nothing(name, stored, family_title(patcher), targets, left_out)
    used = {weight_key(target) for target in applied}
    ignored = ignored_keys(lora, targets, used, empty, {weight_key(target) for target in skipped})
    matched = sorted(key.removeprefix("diffusion_model.") for key in used)
    report = LoraReport(name, strength, matched, ignored, left_out, tuple(_notes(patcher, patches)))
    return copy if strength else patcher.clone(), report


def _load(lora: dict[str, Tensor], targets: dict) -> dict:
    """The host's patches of a file, and the biases that it loses: those of a part of a layer (q, k, v, ...)."""
    modules = {split_key(key)[0] for key in lora}
    patches = {}
    for module in (module for module in targets if module in modules):
        target = targets[module]
        _refuse_alpha(module, lora)
        try:
            found = comfy.lora.load_lora(lora, {module: target}, log_missing=False)
        except KeyError:
            continue  # half of a pair is missing; the report says so
        bias = lora.get(f"{module}.diff_b")
        if bias is not None and not isinstance(target, str):
            key = target[0].removesuffix(".weight") + ".bias"
            offset = target[1] if target[1] is None or target[1][0] == 0 else None
            found[(key, offset, *target[2:])] = ("diff", (bias,))
        patches |= {key: value for key, value in found.items() if weight_key(key) != ".bias"}
    return patches


def _refuse_alpha(module: str, lora: dict[str, Tensor]) -> None:
    alpha = lora.get(f"{module}.alpha")
    if alpha is not None and (alpha.numel() != 1 or alpha.is_complex()):
        raise LoraError(f"{module}.alpha has {alpha.numel()} values, expected one. The file is damaged.")


def _is_empty(value) -> bool:
    """Whether it is of rank 0: trainers write such a pair for layers that they left out."""
    return isinstance(value, LoRAAdapter) and value.weights[1].numel() == 0 == value.weights[0].numel()


def _misfits(patcher, patches: dict) -> dict:
    """Patch -> why the host would log an error and leave that layer as it is; 4-bit layers refuse for themselves."""
    ours = patcher.svdquant_keys() if hasattr(patcher, "svdquant_keys") else {}
    found = {}
    for target, value in patches.items():
        key, offset = (target, None) if isinstance(target, str) else target[:2]
        if key in ours:
            continue
        try:
            weight = comfy.utils.get_attr(patcher.model, key)
        except AttributeError:
            continue  # the host drops what the model does not have, and so the report calls it ignored
        if weight is None or resizes(value):
            continue
        shape = comfy.lora.calculate_shape(patcher.patches.get(key, []), weight, key)
        if problem := beyond(offset, tuple(shape)):
            raise LoraError(f"{shown(key)}: {problem}")  # where ComfyUI fails, and does not only leave it out
        problem = misfit(value, offset, tuple(shape))
        if problem is not None:
            found[target] = problem
    return found


def _refuse_not_finite(patches: dict, keys_of_tensors: dict[int, str]) -> None:
    for target, value in patches.items():
        alpha = getattr(value, "weights", (None,) * 3)[2] if isinstance(value, LoRAAdapter) else None
        if isinstance(alpha, float) and not math.isfinite(alpha):
            raise LoraError(f"{shown(weight_key(target))}: its alpha is {alpha:g}. The file is damaged.")
        for tensor in tensors_in(value):
            if not is_finite(tensor):
                key = keys_of_tensors.get(id(tensor), shown(weight_key(target)))
                raise LoraError(
                    f"{key} holds NaN or infinite values, of which every picture would become black. The file is "
                    "damaged, or its training has failed; use an earlier one."
                )


def _notes(patcher, patches: dict) -> Iterable[str]:
    for target, value in patches.items():
        if resizes(value) and isinstance(value, LoRAAdapter):
            key = weight_key(target)
            before, after = comfy.utils.get_attr(patcher.model, key).shape[1], value.weights[5][1]
            yield (
                f"{shown(key)} takes {after} input channels instead of {before}: the model now wants a control image "
                "(InstructPixToPixConditioning) beside the latent"
            )
