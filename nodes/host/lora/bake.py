"""Layers and weights with a model's patches in them, for whoever writes a file: whichever clone the host has loaded."""

import comfy.lora
import comfy.utils
import torch
from torch import Tensor

from ....svdq_core.errors import LoraError
from ....svdq_core.layer import Part, QuantizedLayer, with_tensors
from ....svdq_core.padding import widen
from .factors import build_lora
from .plan import plan_lora


def patched_weight(patcher, key: str, dtype: torch.dtype | None = None) -> Tensor:
    """An unquantized tensor as this MODEL's patches make it, on the CPU.

    The host patches in place and keeps the original beside it: what the module holds may carry another clone's patches.

    Args:
        key: as the host calls it. dtype: of the result; None keeps that of the model.
    """
    backup = patcher.backup.get(key)
    weight = comfy.utils.get_attr(patcher.model, key) if backup is None else backup.weight
    dtype = dtype or weight.dtype
    patches = patcher.patches.get(key)
    if patches:
        exact = weight.detach().to(patcher.load_device, torch.float32, copy=True)
        weight = comfy.lora.calculate_weight(patches, exact, key)
    return weight.detach().to("cpu", dtype)


def baked_layer(layer: QuantizedLayer, patches: list[tuple], bias_patches: list[tuple], where: str) -> QuantizedLayer:
    """The layer with LoRAs as extra rank of its own low-rank branch, and with its patched bias; codes and scales
    untouched.

    Args:
        layer: as files hold it. patches, bias_patches: the host's, on its weight and on its bias.
        where: the layer's name, for the message.

    Raises:
        LoraError: a patch has no low-rank form.
    """
    plan = plan_lora(patches, bias_patches)
    if plan is None:
        return layer
    if plan.krons or plan.dense or plan.scale != 1.0:
        raise LoraError(
            f"{where}: a LoKr, DoRA, OFT, full difference or scaled weight cannot be written into a 4-bit file. Apply "
            "it to the full-precision model and quantize that."
        )
    sizes = layer.in_features, layer.out_features
    device = layer.parts[0]["qweight"].device
    tensors = build_lora(plan, lambda: layer, sizes, device=device, dtype=torch.float32)
    parts, bias = layer.parts, layer.bias
    if plan.blocks:
        parts = tuple(_bake_part(part, tensors["lora_down"], tensors["lora_up"]) for part in parts)
    if plan.has_bias and bias is not None:
        bias = (bias + tensors["lora_bias"].to(bias.device)).to(bias.dtype)
    return QuantizedLayer(layer.in_features, layer.out_features, parts, bias)


def _bake_part(part: Part, lora_down: Tensor, lora_up: Tensor) -> Part:
    dtype = part["wscales" if part.scheme == "awq" else "proj_down"].dtype
    down = widen(lora_down[part.columns[0] : part.columns[1]].to(dtype), part.width, 0)
    up = lora_up[part.rows[0] : part.rows[1]].to(dtype)
    if part.rank:
        down, up = torch.cat((part["proj_down"], down), dim=1), torch.cat((part["proj_up"], up), dim=1)
    return with_tensors(part, proj_down=down, proj_up=up)
