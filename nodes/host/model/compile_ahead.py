"""What of a MODEL decides which kernels it can ask for."""

from dataclasses import replace
from typing import Any

import torch

from ....svdq_core.blob import BlobLayout
from ....svdq_core.kernel_plan import LayerForm, ModelForm, NormForm, compile_model
from .norms import KernelLayerNorm, KernelRMSNorm
from .quantized_linear import SVDQuantLinear


def compile_ahead(patcher, compute: str, device: torch.device) -> None:
    """Begin to compile what a MODEL of ours can ask for, while the host loads what else it needs.

    Args:
        compute: one of COMPUTE_MODES. device: what will run it.
    """
    compile_model(form_of(patcher.model, compute), device)


def form_of(model: Any, compute: str) -> ModelForm:
    """The quantized layers and the norms of the host's BaseModel, each kind once."""
    layers: dict[LayerForm, None] = {}
    norms: dict[NormForm, None] = {}
    for module in model.modules():
        if isinstance(module, SVDQuantLinear) and module.layout is not None:
            bias = None if module.bias is None else module.bias.dtype
            layers[LayerForm(_without_names(module.layout), bias, module.gelu, module.gelu_from)] = None
        elif isinstance(module, KernelRMSNorm | KernelLayerNorm):
            (width, *others), of_heads = module.normalized_shape, isinstance(module, KernelRMSNorm)
            if not others and (module.weight is not None) == of_heads:
                norms[NormForm(width, module.eps, of_heads)] = None
    return ModelForm(tuple(layers), tuple(norms), compute, model.get_dtype_inference())


def _without_names(layout: BlobLayout) -> str:
    """The layout as text, the same for every layer that shares its input with some."""
    return replace(layout, input="shared" if layout.input else "").to_json()
