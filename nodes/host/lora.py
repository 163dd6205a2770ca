"""From the host's patches on a weight to low-rank factors.

A LoRA on an SVDQuant layer is never merged into the 4-bit codes: its factors are appended to the low-rank branch, which
sees the activation before smoothing, exactly as the layer's own branch does.
"""

from dataclasses import dataclass

import comfy.weight_adapter
import torch
from torch import Tensor

from ...kernels.format import RANK_MULTIPLE
from ...svdq_core.errors import LoraError
from ...svdq_core.layer import Part, QuantizedLayer, with_tensors


@dataclass(frozen=True)
class Factors:
    """All LoRAs on one layer: delta = up @ down.T.

    Args:
        down: (in_features, r), up: (out_features, r), strength and alpha included; r a multiple of RANK_MULTIPLE.
        signature: which patches they were made of, to know when they are still right.
    """

    down: Tensor
    up: Tensor
    signature: tuple


def signature_of(patches: list) -> tuple:
    """Identity of a list of host patches, cheap to compare."""
    return tuple((strength, id(patch), offset) for strength, patch, _, offset, _ in patches)


def refuse_unsupported(key: str, patch: object, strength_model: float, function: object) -> None:
    """Raise LoraError unless the patch can become factors.

    Args:
        key: the weight it is for. patch, strength_model, function: as the host's add_patches takes them.
    """
    layer = key.removeprefix("diffusion_model.").removesuffix(".weight")
    if isinstance(patch, list):
        raise LoraError(
            f"{layer}: a model cannot be merged into an SVDQuant model. Merge the full-precision models and quantize "
            "the result."
        )
    kind = patch[0] if isinstance(patch, tuple) else getattr(patch, "name", type(patch).__name__)
    if not isinstance(patch, comfy.weight_adapter.LoRAAdapter):
        raise LoraError(f"{layer}: a patch of kind {kind!r} cannot be applied to an SVDQuant layer yet, only LoRA.")
    if patch.weights[4] is not None:
        raise LoraError(f"{layer}: DoRA cannot be applied to an SVDQuant layer yet, only LoRA.")
    if patch.weights[3] is not None or (len(patch.weights) > 5 and patch.weights[5] is not None):
        raise LoraError(f"{layer}: this LoRA changes the layer's shape or has a middle factor, expected plain LoRA.")
    if strength_model != 1.0 or function is not None:
        raise LoraError(f"{layer}: the weight of an SVDQuant layer cannot be scaled by {strength_model}; use 1.")


def make_factors(patches: list, in_features: int, out_features: int, dtype: torch.dtype) -> Factors | None:
    """Stack all patches of one layer into one pair of factors; None if their strengths are all 0.

    Args:
        patches: the host's (strength, adapter, strength_model, offset, function) tuples; an offset (dim, start, length)
            restricts a patch to some rows (dim 0) or columns (dim 1) of the weight.
    """
    downs, ups = [], []
    for strength, adapter, _, offset, _ in patches:
        up, down, alpha = adapter.weights[:3]
        if strength == 0:
            continue
        scale = strength * (1.0 if alpha is None else alpha / down.shape[0])
        down, up = down.flatten(1).float().T, up.flatten(1).float() * scale
        downs.append(_place(down, in_features, offset, dim=1))
        ups.append(_place(up, out_features, offset, dim=0))
    if not downs:
        return None
    down, up = torch.cat(downs, dim=1), torch.cat(ups, dim=1)
    padding = -down.shape[1] % RANK_MULTIPLE
    down, up = (torch.nn.functional.pad(t, (0, padding)).to(dtype) for t in (down, up))
    return Factors(down, up, signature_of(patches))


def _place(factor: Tensor, size: int, offset: tuple | None, dim: int) -> Tensor:
    """A factor of some rows or columns of the weight as a factor of all of them."""
    if offset is None or offset[0] != dim:
        return factor
    whole = factor.new_zeros(size, factor.shape[1])
    whole[offset[1] : offset[1] + offset[2]] = factor
    return whole


def check_shapes(key: str, adapter, offset: tuple | None, in_features: int, out_features: int) -> None:
    """Raise LoraError where a LoRA's factors do not fit the layer they are for."""
    up, down = adapter.weights[:2]
    rows = offset[2] if offset is not None and offset[0] == 0 else out_features
    columns = offset[2] if offset is not None and offset[0] == 1 else in_features
    found = (down.flatten(1).shape[1], up.shape[0])
    if found != (columns, rows) or down.shape[0] != up.flatten(1).shape[1]:
        layer = key.removeprefix("diffusion_model.").removesuffix(".weight")
        raise LoraError(
            f"{layer}: the LoRA has {found[0]} inputs and {found[1]} outputs, the layer {columns} and {rows}. "
            "The LoRA was made for another model."
        )


def bake_factors(layer: QuantizedLayer, factors: Factors | None) -> QuantizedLayer:
    """The layer with LoRA factors as extra rank of its own low-rank branch; codes and scales untouched."""
    if factors is None:
        return layer
    return QuantizedLayer(
        layer.in_features, layer.out_features, tuple(_bake_part(p, factors) for p in layer.parts), layer.bias
    )


def _bake_part(part: Part, factors: Factors) -> Part:
    device = part["qweight"].device
    down = factors.down[part.columns[0] : part.columns[1]].to(device)
    up = factors.up[part.rows[0] : part.rows[1]].to(device)
    if part.scheme == "awq":
        dtype = part["wscales"].dtype
        downs, ups = [part.get("proj_down")], [part.get("proj_up")]
    else:
        dtype = part["proj_down"].dtype
        downs, ups = [part["proj_down"]], [part["proj_up"]]
    downs, ups = [t for t in downs if t is not None], [t for t in ups if t is not None]
    return with_tensors(
        part,
        proj_down=torch.cat([*downs, down.to(dtype)], dim=1),
        proj_up=torch.cat([*ups, up.to(dtype)], dim=1),
    )
