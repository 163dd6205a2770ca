"""Reading text encoders that this pack quantized: the names of the source file, packed layers beside plain tensors.

ComfyUI's CLIPSave puts the name of its class in front, "qwen3_4b.transformer.model.layers...", and several encoders
into one file where they belong to one CLIP. Its own loaders cannot read that; here such a file is taken apart again.
"""

import re
from dataclasses import replace

from ..models.others import generic_family
from ..quantized_model import QuantizedModel
from .container import Checkpoint
from .packed import LAYOUT_SUFFIX, plan_linear
from .read_plan import Plan, host_modules, plan_rest
from .t5_read import is_t5, read_text_encoder

_SAVED = re.compile(r"(\w+)\.transformer\.")  # the host's class, then Hugging Face's names


def holds_encoder_layers(checkpoint: Checkpoint) -> bool:
    """Whether a file has quantized layers that a text encoder of ComfyUI can run."""
    return is_t5(checkpoint) or any(name.endswith(LAYOUT_SUFFIX) for name in checkpoint)


def read_encoder(checkpoint: Checkpoint) -> QuantizedModel:
    """All that a file with 4-bit layers holds, under the names that it has there.

    Raises:
        CheckpointError: it is damaged or incomplete.
    """
    tokenizers = [name for name in checkpoint if checkpoint.dtype(name) == "U8" and is_tokenizer(name)]
    model = read_text_encoder(checkpoint) if is_t5(checkpoint) else _read_any(checkpoint, tokenizers)
    model.plain |= {checkpoint.prefix + name: checkpoint[name] for name in tokenizers}
    return model


def read_encoders(checkpoint: Checkpoint) -> list[QuantizedModel]:
    """The text encoders of a file, at least one, each under the names that ComfyUI knows it by.

    Raises:
        CheckpointError: it is damaged or incomplete.
    """
    return take_apart(read_encoder(checkpoint))


def take_apart(model: QuantizedModel) -> list[QuantizedModel]:
    """The encoders that CLIPSave put into one file; the model as it is where it was another that wrote it."""
    names = [*model.layers, *model.plain]
    prefixes = list(dict.fromkeys(found[1] for name in names if (found := _SAVED.match(name))))
    if not prefixes:
        return [model]
    encoders = [replace(model, layers={}, plain={}) for _ in prefixes]
    rest = replace(model, layers={}, plain={})  # what belongs to no encoder, as the projection of LTX-2's
    for source, kind in ((model.layers, "layers"), (model.plain, "plain")):
        for name, value in source.items():
            owner, short = _owner(name, prefixes)
            getattr(rest if owner is None else encoders[owner], kind)[short] = value
    return encoders + ([rest] if rest.layers or rest.plain else [])


def _owner(name: str, prefixes: list[str]) -> tuple[int | None, str]:
    """Index of the encoder that a tensor of CLIPSave's belongs to, and what that calls it."""
    for index, prefix in enumerate(prefixes):
        if name.startswith(f"{prefix}."):
            return index, name.removeprefix(f"{prefix}.").removeprefix("transformer.")
    if is_tokenizer(name):  # "spiece_model", or of one among several "gemma_spiece_model"
        for index, prefix in enumerate(prefixes):
            if name.startswith(f"{prefix}_"):
                return index, name.removeprefix(f"{prefix}_")
        return 0, name
    return None, name


def is_tokenizer(name: str) -> bool:
    """Whether these bytes are no layer's."""
    return name.rpartition(".")[2].endswith(("_model", "_json"))


def _read_any(checkpoint: Checkpoint, others: list[str]) -> QuantizedModel:
    plan = Plan(checkpoint, generic_family("text encoder"))
    for module in host_modules(plan, LAYOUT_SUFFIX):
        plan_linear(plan, module)
    plan.want(*others)
    plan_rest(plan)
    model = plan.read()
    model.layers = {checkpoint.prefix + name: layer for name, layer in model.layers.items()}
    model.plain = {checkpoint.prefix + name: tensor for name, tensor in model.plain.items()}
    return model
