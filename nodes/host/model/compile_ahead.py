"""What of a MODEL decides which kernels it can ask for."""

from dataclasses import replace

import torch

from ....svdq_core.blob import BlobLayout
from ....svdq_core.kernel_plan import LayerForm, NormForm, compile_model
from .norms import KernelLayerNorm, KernelRMSNorm
from .quantized_linear import SVDQuantLinear


def compile_ahead(patcher, compute: str, device: torch.device) -> None:
    """Begin to compile what a MODEL of ours can ask for, while the host loads what else it needs.

    Args:
        compute: one of COMPUTE_MODES. device: what will run it.
    """
    compile_model(*forms_of(patcher.model), compute, patcher.model.get_dtype_inference(), device)


def forms_of(model: torch.nn.Module) -> tuple[list[LayerForm], list[NormForm]]:
    """The quantized layers and the norms of a model, each kind once."""
    layers: dict[LayerForm, None] = {}
    norms: dict[NormForm, None] = {}
    for module in model.modules():
        if isinstance(module, SVDQuantLinear) and module.layout is not None:
            bias = None if module.bias is None else module.bias.dtype
            layers[LayerForm(_without_names(module.layout), bias, module.gelu, module.gelu_from)] = None
        elif isinstance(module, KernelRMSNorm) and module.weight is not None and module.eps is not None:
            if len(module.normalized_shape) == 1:
                norms[NormForm(module.normalized_shape[0], module.eps, True)] = None
        elif isinstance(module, KernelLayerNorm) and module.weight is None and len(module.normalized_shape) == 1:
            norms[NormForm(module.normalized_shape[0], module.eps, False)] = None
    return list(layers), list(norms)


def _without_names(layout: BlobLayout) -> str:
    """The layout as text, the same for every layer that shares its input with some."""
    return replace(layout, input="shared" if layout.input else "").to_json()
