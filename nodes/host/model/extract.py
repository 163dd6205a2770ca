"""From the host's MODEL back to a quantized model."""

from collections.abc import Iterator

import torch

from ....svdq_core.errors import SVDQuantError
from ....svdq_core.quantized_model import QuantizedModel
from ....svdq_core.stack import as_in_files
from ..lora.bake import baked_layer, patched_weight
from .dense_weights import PREFIX
from .quantized_linear import is_quantized


def extract_model(patcher) -> QuantizedModel:
    """An SVDQuant MODEL as a quantized model under the host's names, LoRAs baked in as extra rank.

    Raises:
        SVDQuantError: the MODEL has no SVDQuant layers.
    """
    if not is_quantized(patcher):
        raise SVDQuantError("This model has no SVDQuant layers. Load one, or quantize this one, and export that.")
    architecture = patcher.model.svdquant_architecture
    model = QuantizedModel(architecture, metadata=dict(patcher.model.svdquant_metadata))
    layers = {key.removeprefix(PREFIX).removesuffix(".weight"): m for key, m in patcher.svdquant_layers().items()}
    for name, module in layers.items():
        layer = as_in_files(module.layer_on(torch.device("cpu")))
        weight, bias = (patcher.patches.get(f"{PREFIX}{name}.{end}", []) for end in ("weight", "bias"))
        model.layers[name] = baked_layer(layer, weight, bias, name)
    dtype = model.half_dtype
    for name in _plain_names(patcher, layers):
        model.plain[name] = patched_weight(patcher, PREFIX + name, dtype)
    model.plain |= patcher.model.svdquant_unused
    return model


def _plain_names(patcher, layers: dict) -> Iterator[str]:
    for name in patcher.model.diffusion_model.state_dict():
        if name.rpartition(".")[0] not in layers:
            yield name
