"""Spellings of LoRA files, brought to those that the host's own loader knows.

What the host converts itself goes through the host's functions. Added here, for every family: prefixes in any mixture,
adapters that PEFT has named, biases, FLUX-tools LoRAs in diffusers' spelling, files that were converted for nunchaku,
and names of families for which the host knows its own alone.
"""

import re

import comfy.lora_convert
import torch
from torch import Tensor

from .family_names import family_names, swap_halves
from .nunchaku_lora import from_nunchaku, is_nunchaku

# what tools put in front of a module's name; stripped one after the other, in any order
PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)
TEXT_ENCODER_MARKS = ("lora_te", "text_encoder", "te1_", "te2_", "clip_l.", "t5xxl.")

# everything that can follow a module's name
_SUFFIX = re.compile(
    r"(\.lora_(A|B|up|down|mid)(\.\w+)?(\.weight|\.bias)?"
    r"|[._]lora\.(up|down)\.weight"
    r"|\.lora_linear_layer\.(up|down)\.weight"
    r"|\.(lokr|hada)_\w+|\.(a1|a2|b1|b2)\.weight|\.oft_blocks|\.rescale"
    r"|\.lora_magnitude_vector(\.\w+)?(\.weight)?"
    r"|\.(alpha|dora_scale|diff|diff_b|set_weight|w_norm|b_norm|reshape_weight))$"
)


def to_host_names(lora: dict[str, Tensor], targets: dict, patcher) -> dict[str, Tensor]:
    """The tensors of a LoRA file under names that the host's loader finds, where there is such a name.

    Args:
        lora: as the file has them; consumed.
        targets: the host's key map for this model; gains the names of the family that the host does not know.
        patcher: the MODEL; a file converted for nunchaku is told from its base branch by it.
    """
    if is_nunchaku(lora):
        lora = from_nunchaku(lora, patcher)
    lora = _convert(lora)
    cores = _cores(targets)
    more = {core_of(name): (name, named) for name, named in family_names(patcher).items()}
    renamed: dict[str, Tensor] = {}
    for key, tensor in lora.items():
        module, suffix = split_key(key)
        found, end = None, _host_suffix(suffix)
        if suffix and module not in targets:
            core = core_of(module)
            module, found = (cores[core], None) if core in cores else more.get(core, (module, None))
        if found is not None:
            targets[module] = found.target
            tensor = swap_halves(module, end, tensor) if found.swapped else tensor
        renamed.setdefault(module + end, tensor)
    _scale_biases(renamed)
    _widen_inputs(renamed, targets, patcher)
    return renamed


def split_key(key: str) -> tuple[str, str]:
    """(module, rest) of a key; the rest is empty for a key of no known kind."""
    match = _SUFFIX.search(key)
    return (key, "") if match is None else (key[: match.start()], match.group())


def _convert(lora: dict[str, Tensor]) -> dict[str, Tensor]:
    converted = comfy.lora_convert.convert_lora(lora)
    if converted is lora and any(".processor." in key and "_lora" in key for key in lora):
        # XLabs: the host knows the names by a file that covers every block, and many cover the double blocks only
        return comfy.lora_convert.convert_uso_lora(lora)
    return converted


def core_of(name: str) -> str:
    """A module's name without prefixes and with one kind of separator."""
    stripped = True
    while stripped:
        stripped = next((p for p in PREFIXES if name.startswith(p)), "")
        name = name.removeprefix(stripped)
    return name.replace(".", "_")


def _cores(targets: dict) -> dict[str, str]:
    """Core -> one of the host's names for it; a core that means two things is left out."""
    cores: dict[str, str] = {}
    for name, target in targets.items():
        core = core_of(name)
        if core in cores and targets.get(cores[core]) != target:
            cores[core] = ""
        else:
            cores.setdefault(core, name)
    return {core: name for core, name in cores.items() if name}


def _host_suffix(suffix: str) -> str:
    named = re.fullmatch(r"\.lora_(A|B|up|down)\.(?!weight$|bias$)\w+(\.weight|\.bias)?", suffix)
    if named:  # PEFT puts the adapter's own name in between
        suffix = f".lora_{named.group(1)}{named.group(2) or '.weight'}"
    return ".diff_b" if suffix in (".lora_B.bias", ".lora_up.bias") else suffix


def _scale_biases(lora: dict[str, Tensor]) -> None:
    """A bias trained with a LoRA is scaled by alpha / rank as the LoRA is; the host adds it as it stands."""
    for key in [key for key in lora if key.endswith(".diff_b")]:
        module = key.removesuffix(".diff_b")
        alpha = lora.get(f"{module}.alpha")
        down = next(
            (lora[module + end] for end in (".lora_A.weight", ".lora_down.weight") if module + end in lora), None
        )
        if alpha is not None and down is not None and alpha.numel() == 1 and down.shape[:1] != (0,):
            lora[key] = lora[key].float() * (alpha.item() / down.shape[0])


def _widen_inputs(lora: dict[str, Tensor], targets: dict, patcher) -> None:
    """Tell the host that a LoRA gives the image input twice the channels (FLUX tools in diffusers' spelling).

    Other numbers are left to the host, which then leaves img_in as it is: a LoRA that was trained on FLUX Fill has 384
    channels, and would make of another FLUX a model that wants a mask and was never trained with one.
    """
    network = patcher.model.diffusion_model
    weight = getattr(getattr(network, "img_in", None), "weight", None)
    for name, target in targets.items():
        down = lora.get(f"{name}.lora_A.weight")
        if target != "diffusion_model.img_in.weight" or down is None or weight is None or weight.ndim != 2:
            continue
        if down.ndim == 2 and down.shape[1] == 2 * weight.shape[1]:
            lora.setdefault(f"{name}.reshape_weight", torch.tensor([weight.shape[0], down.shape[1]]))
