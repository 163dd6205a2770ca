"""A quantized model as the state dict that the host builds its own class from."""

import torch
from torch import Tensor

from ....svdq_core.apply_layer import dense_bias, dense_weight
from ....svdq_core.blob import to_blob
from ....svdq_core.layer import QuantizedLayer
from ....svdq_core.quantized_model import QuantizedModel
from ....svdq_core.runtime import with_derived
from .placeholder import Packed, placeholder

# Linears whose weight the host reads beside multiplying with it: CogVideoX and Hunyuan3D cast activations to its dtype,
# FLUX and Hunyuan Video 1.5 take channels from its shape
READ_BY_THE_HOST = ("patch_embed.text_proj", "patch_embed.proj", "t_embedder.mlp.0", "img_in", "img_in.proj")


def to_state_dict(model: QuantizedModel, compute: str, device: torch.device) -> dict[str, Tensor]:
    """Plain tensors, and placeholders of packed ones; the layers of `model` are used up, one by one.

    Args:
        compute, device: the mode that will run the layers, and where.
    """
    state_dict, dtype = dict(model.plain), model.half_dtype
    for name in list(model.layers):
        layer = model.layers.pop(name)
        if name in READ_BY_THE_HOST:
            state_dict |= {key: tensor.to(dtype) for key, tensor in _dense(name, layer).items()}
            continue
        layer = with_derived(layer, compute, device)
        state_dict[f"{name}.weight"] = placeholder(Packed(*to_blob(layer)), dtype)
        if layer.bias is not None:
            state_dict[f"{name}.bias"] = layer.bias
    return state_dict


def _dense(name: str, layer: QuantizedLayer) -> dict[str, Tensor]:
    bias = dense_bias(layer)
    return {f"{name}.weight": dense_weight(layer)} | ({} if bias is None else {f"{name}.bias": bias})
