"""A LoRA file applied to a MODEL, with an account of what matched."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import comfy.lora
import comfy.utils
from torch import Tensor

from ....svdq_core.errors import LoraError
from ..files import fingerprint
from .spellings import TEXT_ENCODER_MARKS, split_key, to_host_names

SHOWN_KEYS = 5  # of each kind that is ignored
# open at once; a file that is read again has new tensors, which would have to go to the card again
OPEN_FILES = 8

# a piece of a key that only LoRAs for this other model have -> its name
_FOREIGN_MARKS = {
    "down_blocks": "Stable Diffusion or SDXL",
    "input_blocks": "Stable Diffusion or SDXL",
    "joint_blocks": "Stable Diffusion 3",
    "double_blocks": "FLUX",
    "single_transformer_blocks": "FLUX",
}

_TEXT_ENCODER = "for the text encoder; LoraLoader with a CLIP applies them"
_MAGNITUDE = "magnitudes of PEFT's DoRA, which ComfyUI does not apply"
_NO_LAYER = "this model has no such layer"
_NO_WEIGHT = "the layer has no such weight here, or the file lacks the other half"
_NO_KIND = "not a kind of tensor that ComfyUI applies"


@dataclass(frozen=True)
class LoraReport:
    """What became of one LoRA file.

    Args:
        name: of the file. strength: as given.
        matched: weights of the model that it changes.
        ignored: reason -> keys of the file that nothing uses.
    """

    name: str
    strength: float
    matched: list[str]
    ignored: dict[str, list[str]]

    def text(self) -> str:
        lines = [f"{self.name} at strength {self.strength:g}: {len(self.matched)} layers matched"]
        for reason, keys in self.ignored.items():
            shown = ", ".join(keys[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")
            lines.append(f"  {len(keys)} keys ignored, {reason}: {shown}")
        return "\n".join(lines)


def apply_lora_file(patcher, path: str, strength: float):
    """A copy of the MODEL with a LoRA, and the report; at strength 0 nothing is applied.

    Raises:
        LoraError: the file cannot be read, nothing in it fits the model, or a 4-bit layer cannot take something of it.
    """
    name = Path(path).name
    stored = _open_lora(path, fingerprint(path))
    targets = comfy.lora.model_lora_keys_unet(patcher.model, {})
    lora = to_host_names(stored, targets, patcher)
    patches = comfy.lora.load_lora(lora, targets, log_missing=False)
    copy = patcher.clone()
    try:
        applied = copy.add_patches(patches, strength)
    except LoraError as error:
        raise LoraError(f"{name}: {error}") from error
    if not applied:
        raise LoraError(_nothing_matched(name, stored, patcher))
    keys = {_weight_key(target) for target in applied}
    report = LoraReport(
        name, strength, sorted(key.removeprefix("diffusion_model.") for key in keys), _ignored(lora, targets, keys)
    )
    return copy if strength else patcher.clone(), report


@lru_cache(maxsize=OPEN_FILES)
def _open_lora(path: str, _fingerprint: str) -> dict[str, Tensor]:
    try:
        return comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:  # each kind of file has its own errors, and all mean the same to the user
        raise LoraError(
            f"{Path(path).name}: not a readable LoRA file ({error}). It is damaged or its download is incomplete; "
            "download it again."
        ) from error


def _weight_key(target) -> str:
    return target if isinstance(target, str) else target[0]


def _ignored(lora: Iterable[str], targets: dict, used: set[str]) -> dict[str, list[str]]:
    """Reason -> keys that nothing uses."""
    ignored: dict[str, list[str]] = {}
    for key in sorted(lora):
        module, suffix = split_key(key)
        target = _weight_key(targets[module]) if module in targets else ""
        if "magnitude" in suffix:
            reason = _MAGNITUDE
        elif key.startswith(TEXT_ENCODER_MARKS):
            reason = _TEXT_ENCODER
        elif not target:
            reason = _NO_LAYER
        elif not suffix:
            reason = _NO_KIND
        elif used.isdisjoint({target, target.removesuffix("weight") + "bias"}):
            reason = _NO_WEIGHT
        else:
            continue
        ignored.setdefault(reason, []).append(key)
    return ignored


def _nothing_matched(name: str, lora: dict, patcher) -> str:
    kind = next((title for mark, title in _FOREIGN_MARKS.items() if any(mark in key for key in lora)), None)
    found = f"it looks like a LoRA for {kind}" if kind else "its first keys are " + ", ".join(sorted(lora)[:3])
    if lora and all(key.startswith(TEXT_ENCODER_MARKS) for key in lora):
        found = "all of them are for the text encoder; use LoraLoader with a CLIP"
    if not lora:
        found = "the file is empty"
    family = type(patcher.model).__name__
    return f"{name}: none of its {len(lora)} keys fits this {family} model; {found}. Nothing was applied."
