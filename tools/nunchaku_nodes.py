"""What becomes of each node of ComfyUI-nunchaku: its values in ours or in core nodes, and what has no counterpart.

Standard library only. Source of names and orders: ComfyUI-nunchaku 1.0 to 1.2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MOST_ROWS = 10  # of SVDQuantLoraStack
HOST_T5_LENGTH = 256  # what ComfyUI pads FLUX prompts to by itself

# class -> its widgets in the order in which the page stores their values
WIDGETS = {
    "NunchakuFluxDiTLoader": (
        "model_path",
        "cache_threshold",
        "attention",
        "cpu_offload",
        "device_id",
        "data_type",
        "i2f_mode",
    ),
    "NunchakuFluxLoraLoader": ("lora_name", "lora_strength"),
    "NunchakuFluxLoraStack": tuple(f"lora_{kind}_{i}" for i in range(1, 16) for kind in ("name", "strength")),
    "NunchakuQwenImageLoraLoader": ("lora_name", "lora_strength"),
    "NunchakuQwenImageLoraStack": tuple(f"lora_{kind}_{i}" for i in range(1, 6) for kind in ("name", "strength")),
    "NunchakuTextEncoderLoader": (
        "model_type",
        "text_encoder1",
        "text_encoder2",
        "t5_min_length",
        "use_4bit_t5",
        "int4_model",
    ),
    "NunchakuTextEncoderLoaderV2": ("model_type", "text_encoder1", "text_encoder2", "t5_min_length"),
    "NunchakuWheelInstaller": ("version", "dev_version", "mode"),
    "NunchakuQwenImageDiTLoader": ("model_name", "cpu_offload", "num_blocks_on_gpu", "use_pin_memory"),
    "NunchakuZImageDiTLoader": ("model_name", "cpu_offload", "num_blocks_on_gpu", "use_pin_memory"),
}

# nodes that stay as they are -> why
WITHOUT_COUNTERPART = {
    "NunchakuPuLIDLoader": "PuLID: take a PuLID pack for FLUX.",
    "NunchakuPuLIDLoaderV2": "PuLID: take a PuLID pack for FLUX.",
    "NunchakuPulidLoader": "PuLID: take a PuLID pack for FLUX.",
    "NunchakuPulidApply": "PuLID: take a PuLID pack for FLUX.",
    "NunchakuFluxPuLIDApplyV2": "PuLID: take a PuLID pack for FLUX.",
    "NunchakuIPAdapterLoader": "IP-Adapter: take an IP-Adapter pack for FLUX, or FLUX.1 Redux (core nodes).",
    "NunchakuFluxIPAdapterApply": "IP-Adapter: take an IP-Adapter pack for FLUX, or FLUX.1 Redux (core nodes).",
    "NunchakuModelMerger": "Not needed: Load Model (SVDQuant) reads folders of older releases; Export Model (SVDQuant) "
    "writes one file.",
    **dict.fromkeys(
        [f"NunchakuQwenImageLoraStackV{n}" for n in (1, 2, 3)]
        + [f"NunchakuZImageTurboLoraStackV{n}" for n in (1, 2, 4)],
        "LoRAs of another pack: put Apply LoRAs (SVDQuant) or stock LoRA loaders in its place, with the same files.",
    ),
    "NunchakuDepthPreprocessor": "Depth maps: take a preprocessor pack, for example comfyui_controlnet_aux.",
}


@dataclass(frozen=True)
class NewNode:
    """A node in place of an old one.

    Args:
        values: input -> value, in the page's order, links excluded.
        sockets: (input, type) of the inputs that are no widgets.
        outputs: (name, type).
        renamed: old input -> new input, where a link to it is kept.
    """

    class_type: str
    values: dict[str, Any]
    sockets: tuple[tuple[str, str], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Replacement:
    """What an old node becomes: nodes one after the other (none: its input is joined to its output), and remarks."""

    chain: tuple[NewNode, ...]
    notes: tuple[str, ...] = ()


def _model_loader(values: dict) -> Replacement:
    notes = []
    if float(values.get("cache_threshold") or 0) > 0:
        notes.append(
            f"cache_threshold {values['cache_threshold']:g} is left out: put the core node EasyCache behind the loader."
        )
    if values.get("cpu_offload") == "enable":
        notes.append("cpu_offload is left out: ComfyUI moves the model as memory requires (start it with --lowvram).")
    if int(values.get("device_id") or 0):
        notes.append(f"device_id {values['device_id']} is left out: start ComfyUI with --cuda-device.")
    return Replacement((_loader(values.get("model_path", ""), "model_path"),), tuple(notes))


def _loader(file: str, called: str) -> NewNode:
    return NewNode(
        "SVDQuantModelLoader",
        {"model_name": file, "compute": "auto", "attention": "auto", "second_file": "none"},
        outputs=(("MODEL", "MODEL"), ("status", "STRING")),
        renamed={called: "model_name"},
    )


def _family_loader(values: dict) -> Replacement:
    notes = []
    if values.get("cpu_offload") == "enable":
        notes.append("cpu_offload is left out: ComfyUI moves the model as memory requires (start it with --lowvram).")
    return Replacement((_loader(values.get("model_name", ""), "model_name"),), tuple(notes))


_PATCHED = (("MODEL", "MODEL"), ("report", "STRING"))


def _lora_loader(values: dict) -> Replacement:
    node = NewNode(
        "SVDQuantLoraLoader",
        {"lora_name": values.get("lora_name", ""), "strength": float(values.get("lora_strength", 1.0))},
        (("model", "MODEL"),),
        _PATCHED,
        {"model": "model", "lora_name": "lora_name", "lora_strength": "strength"},
    )
    return Replacement((node,))


def _lora_stack(values: dict) -> Replacement:
    rows = []
    for i in range(1, 16):
        name = values.get(f"lora_name_{i}", "None")
        if name and name != "None":
            rows.append((i, name, float(values.get(f"lora_strength_{i}", 1.0))))
    chain = []
    for start in range(0, len(rows), MOST_ROWS):
        part = rows[start : start + MOST_ROWS]
        new: dict[str, Any] = {"loras": str(len(part))}
        renamed = {"model": "model"}
        for row, (old, name, strength) in enumerate(part, start=1):
            new |= {f"loras.on_{row}": True, f"loras.lora_{row}": name, f"loras.strength_{row}": strength}
            renamed |= {f"lora_name_{old}": f"loras.lora_{row}", f"lora_strength_{old}": f"loras.strength_{row}"}
        chain.append(NewNode("SVDQuantLoraStack", new, (("model", "MODEL"),), _PATCHED, renamed))
    notes = ["every row was None: the node is taken out."] if not rows else []
    if len(chain) > 1:
        notes.append(f"{len(rows)} LoRAs: two nodes, since one holds {MOST_ROWS}.")
    return Replacement(tuple(chain), tuple(notes))


def _four_bit_encoder(t5: int, names: list[str]) -> NewNode:
    """The loader of a 4-bit T5, which is names[t5], and of what stands beside it."""
    other = 1 - t5
    values = {"text_encoder": names[t5], "type": "flux", "second": names[other] or "none", "third": "none"}
    return NewNode(
        "SVDQuantTextEncoderLoader",
        {**values, "device": "default"},
        outputs=(("CLIP", "CLIP"),),
        renamed={f"text_encoder{t5 + 1}": "text_encoder", f"text_encoder{other + 1}": "second"},
    )


def _text_encoders(values: dict) -> Replacement:
    notes, names = [], [values.get("text_encoder1", ""), values.get("text_encoder2", "")]
    if values.get("use_4bit_t5") == "enable" and values.get("int4_model"):
        names = [values["int4_model"] if "t5" in str(name).lower() else name for name in names]
    quantized = [i for i, name in enumerate(names) if "awq-int4" in str(name).lower()]
    if quantized:
        loader = _four_bit_encoder(quantized[0], names)
    else:
        loader = NewNode(
            "DualCLIPLoader",
            {"clip_name1": names[0], "clip_name2": names[1], "type": "flux", "device": "default"},
            outputs=(("CLIP", "CLIP"),),
            renamed={"text_encoder1": "clip_name1", "text_encoder2": "clip_name2"},
        )
    length = int(values.get("t5_min_length") or HOST_T5_LENGTH)
    if length == HOST_T5_LENGTH:
        return Replacement((loader,), tuple(notes))
    notes.append(f"t5_min_length {length} is kept by the core node T5TokenizerOptions; ComfyUI's own value is 256.")
    options = NewNode(
        "T5TokenizerOptions",
        {"min_padding": 0, "min_length": length},
        (("clip", "CLIP"),),
        (("CLIP", "CLIP"),),
        {"t5_min_length": "min_length"},
    )
    return Replacement((loader, options), tuple(notes))


def _installer(values: dict) -> Replacement:
    return Replacement((), ("not needed: this pack installs no wheel.",))


RULES: dict[str, Callable[[dict], Replacement]] = {
    "NunchakuFluxDiTLoader": _model_loader,
    "NunchakuQwenImageDiTLoader": _family_loader,
    "NunchakuZImageDiTLoader": _family_loader,
    "NunchakuFluxLoraLoader": _lora_loader,
    "NunchakuFluxLoraStack": _lora_stack,
    "NunchakuQwenImageLoraLoader": _lora_loader,
    "NunchakuQwenImageLoraStack": _lora_stack,
    "NunchakuTextEncoderLoader": _text_encoders,
    "NunchakuTextEncoderLoaderV2": _text_encoders,
    "NunchakuWheelInstaller": _installer,
}
