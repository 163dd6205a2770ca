"""A LoRA file applied to a MODEL, with an account of what matched."""

from dataclasses import dataclass
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import comfy.utils

from ...svdq_core.errors import LoraError

# a piece of a key that only LoRAs for this other model have -> its name
_FOREIGN_MARKS = {
    "down_blocks": "Stable Diffusion or SDXL",
    "input_blocks": "Stable Diffusion or SDXL",
    "joint_blocks": "Stable Diffusion 3",
    "double_blocks": "FLUX",
    "single_transformer_blocks": "FLUX",
}


@dataclass(frozen=True)
class LoraReport:
    """What became of one LoRA file.

    Args:
        name: of the file. strength: as given.
        matched: weights of the model that it changes. ignored: keys of the file that nothing uses.
    """

    name: str
    strength: float
    matched: list[str]
    ignored: list[str]

    def text(self) -> str:
        lines = [f"{self.name} at strength {self.strength:g}: {len(self.matched)} layers matched"]
        if self.ignored:
            lines[0] += f", {len(self.ignored)} keys ignored, because this model has no layer for them:"
            lines += [f"  {key}" for key in self.ignored[:10]]
            lines += ["  ..."] if len(self.ignored) > 10 else []
        return "\n".join(lines)


def apply_lora_file(patcher, path: str, strength: float):
    """A copy of the MODEL with a LoRA, and the report.

    Raises:
        LoraError: nothing in the file fits the model, or something in it cannot be applied to an SVDQuant layer.
    """
    name = Path(path).name
    lora = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
    targets = comfy.lora.model_lora_keys_unet(patcher.model, {})
    patches = comfy.lora.load_lora(lora, targets, log_missing=False)
    copy = patcher.clone()
    try:
        applied = copy.add_patches(patches, strength)
    except LoraError as error:
        raise LoraError(f"{name}: {error}") from error
    if not applied:
        raise LoraError(_nothing_matched(name, lora, patcher))
    matched = sorted({_weight_key(target).removeprefix("diffusion_model.") for target in applied})
    return copy, LoraReport(name, strength, matched, _unused_keys(lora, targets, patches))


def _weight_key(target) -> str:
    return target if isinstance(target, str) else target[0]


def _unused_keys(lora: dict, targets: dict, patches: dict) -> list[str]:
    prefixes = tuple(f"{name}." for name, target in targets.items() if target in patches)
    used = {key for patch in patches.values() for key in getattr(patch, "loaded_keys", ())}
    return sorted(key for key in lora if key not in used and not key.startswith(prefixes))


def _nothing_matched(name: str, lora: dict, patcher) -> str:
    kind = next((title for mark, title in _FOREIGN_MARKS.items() if any(mark in key for key in lora)), None)
    found = f"it looks like a LoRA for {kind}" if kind else "its first keys are " + ", ".join(sorted(lora)[:3])
    if any(".mlp_fc" in key or ".mlp_context_fc" in key for key in lora):
        found = "it was converted for nunchaku; use the original LoRA file instead"
    family = type(patcher.model).__name__
    return f"{name}: none of its {len(lora)} keys fits this {family} model; {found}. Nothing was applied."
