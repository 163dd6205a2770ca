"""What became of a LoRA file, and why nothing did: as the user reads it."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

from ....svdq_core.errors import LoraError
from ....svdq_core.models import FAMILIES, other_family_of_lora
from .spellings import TEXT_ENCODER_MARKS, core_of, split_key

SHOWN_KEYS = 5  # of each kind that is ignored
MOST_COMPARED = 4000  # names of the model that a key is compared with

_TEXT_ENCODER = "for the text encoder; LoraLoader with a CLIP applies them"
_MAGNITUDE = "magnitudes of PEFT's DoRA, which ComfyUI does not apply"
_NO_LAYER = "this model has no such layer"
_NO_WEIGHT = "the layer has no such weight here, or the file lacks the other half"
_NO_KIND = "not a kind of tensor that ComfyUI applies"
_EMPTY = "of rank 0, which changes nothing"
_SKIPPED = "of a layer that ComfyUI leaves as it is"

# how the tensors of whole models end; a LoRA that sets norms has some of them as well
_MODEL_ENDINGS = (".weight", ".bias", ".scale", ".scale_weight", ".comfy_quant")


@dataclass(frozen=True)
class LoraReport:
    """What became of one LoRA file.

    Args:
        name: of the file. strength: as given.
        matched: weights of the model that it changes.
        ignored: reason -> keys of the file that nothing uses.
        skipped: layer -> why ComfyUI leaves it as it is, although the file has something for it.
        notes: what else the user should know.
    """

    name: str
    strength: float
    matched: list[str]
    ignored: dict[str, list[str]]
    skipped: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        lines = [f"{self.name} at strength {self.strength:g}: {len(self.matched)} layers matched"]
        lines += [f"  {note}" for note in self.notes]
        if self.skipped:
            layers = list(self.skipped)
            reasons = "; ".join(f"{layer}: {self.skipped[layer]}" for layer in layers[:SHOWN_KEYS])
            lines.append(f"  {len(layers)} layers skipped, as ComfyUI skips them: {reasons}")
        for reason, keys in self.ignored.items():
            shown = ", ".join(keys[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")
            lines.append(f"  {len(keys)} keys ignored, {reason}: {shown}")
        return "\n".join(lines)


def ignored_keys(
    lora: Iterable[str], targets: dict, used: set[str], empty: set[str], skipped: set[str]
) -> dict[str, list[str]]:
    """Reason -> keys that nothing uses.

    Args:
        lora: keys, as to_host_names gives them. targets: the host's key map.
        used, empty, skipped: keys of the model's weights that are changed, that something of rank 0 is for, and that
            are left out.
    """
    ignored: dict[str, list[str]] = {}
    for key in sorted(lora):
        module, suffix = split_key(key)
        target = weight_key(targets[module]) if module in targets else ""
        both = {target, target.removesuffix("weight") + "bias"}
        if "magnitude" in suffix:
            reason = _MAGNITUDE
        elif key.startswith(TEXT_ENCODER_MARKS):
            reason = _TEXT_ENCODER
        elif not target:
            reason = _NO_LAYER
        elif not suffix:
            reason = _NO_KIND
        elif not used.isdisjoint(both):
            continue
        elif not empty.isdisjoint(both):
            reason = _EMPTY
        elif not skipped.isdisjoint(both):
            reason = _SKIPPED
        else:
            reason = _NO_WEIGHT
        ignored.setdefault(reason, []).append(key)
    return ignored


def weight_key(target: str | tuple) -> str:
    """The key of the weight that a name of the host's key map stands for."""
    return target if isinstance(target, str) else target[0]


def refuse_quantized_model(name: str, stored: Iterable[str]) -> None:
    """Raise LoraError for the file of a quantized model, which calls its own low-rank branches lora_down and lora_up.

    Args:
        stored: keys as the file has them.
    """
    keys = sorted(stored)
    if any(key.endswith(".qweight") for key in keys):
        raise _whole_model(name, keys)


def refuse_whole_model(name: str, stored: Iterable[str]) -> None:
    """Raise LoraError for a file that holds a model and nothing of a LoRA."""
    keys = sorted(stored)
    if keys and _is_whole_model(keys):
        raise _whole_model(name, keys)


def _whole_model(name: str, keys: list[str]) -> LoraError:
    return LoraError(
        f"{name}: this is a whole model ({len(keys)} tensors, first {_short(keys[0])}), not a LoRA. Move it to "
        "models/diffusion_models or models/checkpoints and load it there."
    )


def refuse_nothing(name: str, stored: Iterable[str], family: str, targets: dict, skipped: dict[str, str]) -> LoraError:
    """The error for a file of which nothing can be applied.

    Args:
        stored: keys as the file has them. family: title of the model's. targets: the host's key map.
        skipped: as LoraReport.skipped.
    """
    keys = sorted(stored)
    start = f"{name}: none of its {len(keys)} keys fits this {family} model"
    if not keys:
        return LoraError(f"{start}; the file is empty. Nothing was applied.")
    if skipped:
        layer, reason = next(iter(skipped.items()))
        return LoraError(f"{start}; {layer}: {reason} Nothing was applied.")
    if all(key.startswith(TEXT_ENCODER_MARKS) for key in keys):
        return LoraError(f"{start}; all of them are for the text encoder; use LoraLoader with a CLIP. Nothing applied.")
    if _is_whole_model(keys):
        return _whole_model(name, keys)
    kind = other_family_of_lora(FAMILIES, keys, targets)
    found = f"it looks like a LoRA for {kind}" if kind else _what_would_fit(keys, targets)
    return LoraError(f"{start}; {found}. Nothing was applied.")


def _is_whole_model(keys: list[str]) -> bool:
    """Whether no key is of a LoRA, and most are what a model's file has."""
    if any(split_key(key)[1] for key in keys):
        return False
    return sum(key.endswith(_MODEL_ENDINGS) for key in keys) * 2 > len(keys)


def _what_would_fit(keys: list[str], targets: dict) -> str:
    """A key, and what it would have had to be."""
    first = next((key for key in keys if not key.startswith(TEXT_ENCODER_MARKS)), keys[0])
    module, suffix = split_key(first)
    if not suffix:
        example = next(iter(targets), "")
        return (
            f"{_short(first)} ends in nothing that a LoRA has, such as .lora_A.weight, .lora_up.weight or .lokr_w1; "
            f"a layer of this model is called {example}, for instance"
        )
    if module in targets:
        return f"{_short(first)} names a layer of this model, but has no weight there, or its other half is missing"
    names = list(targets)[:MOST_COMPARED]
    cores = {core_of(target): target for target in names}
    (near,) = difflib.get_close_matches(core_of(module)[:200], cores, n=1, cutoff=0.0) or ("",)
    return f"{_short(first)} would have to be {cores.get(near, '')}{suffix}, for instance"


def _short(key: str) -> str:
    return key if len(key) <= 120 else key[:117] + "..."
