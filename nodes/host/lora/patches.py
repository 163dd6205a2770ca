"""The host's patches on one weight: which are the same, which add up, which a quantized layer can take.

A patch is the host's tuple (strength, value, strength_model, offset, function); the value is a weight adapter (LoRA,
LoKr, ...), a tuple such as ("diff", (tensor,)), or a list when another model is merged in. An offset (dim, start,
length) restricts a patch to some rows (dim 0) or columns (dim 1) of the weight.
"""

import weakref
from collections.abc import Hashable

import torch
from comfy.weight_adapter import (
    BOFTAdapter,
    GLoRAAdapter,
    LoHaAdapter,
    LoKrAdapter,
    LoRAAdapter,
    OFTAdapter,
    WeightAdapterBase,
)
from torch import Tensor

from ....svdq_core.errors import LoraError

COMPARED_AT_FIRST = 64  # values; only where they agree are whole tensors compared


class _Content:
    """What equal tensors have in common; compared by identity."""


_known: dict[tuple, list[weakref.ref]] = {}


def content_of(tensor: Tensor) -> _Content:
    """A token that two tensors share exactly if they hold the same bits, whoever loaded them.

    It lives on the tensor, so a second question costs nothing.
    """
    token = getattr(tensor, "svdquant_content", None)
    if token is None:
        start = tensor
        while start.ndim > 1 and start.numel():
            start = start[0]
        start = _bits(start.reshape(-1)[:COMPARED_AT_FIRST]).cpu()
        alike = _known.setdefault((tuple(tensor.shape), tensor.dtype, tensor.device, bytes(start.tolist())), [])
        tensors = [other for other in (ref() for ref in alike) if other is not None]
        equal = next((other for other in tensors if torch.equal(_bits(other), _bits(tensor))), None)
        token = _Content() if equal is None else equal.svdquant_content
        tensor.svdquant_content = token
        alike[:] = [weakref.ref(other) for other in [*tensors, tensor]]
    return token


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def identity_of(value) -> Hashable:
    """Equal for patches that do the same, different for all others; holds no tensor alive."""
    if isinstance(value, Tensor):
        return content_of(value)
    if isinstance(value, WeightAdapterBase):
        return type(value), identity_of(value.weights)
    if isinstance(value, (tuple, list)):
        return type(value), *(identity_of(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, identity_of(item)) for name, item in sorted(value.items()))
    return value


def signature_of(patches: list[tuple]) -> tuple:
    """Equal for lists of patches that do the same."""
    return tuple((s, identity_of(value), model, offset, function) for s, value, model, offset, function in patches)


def is_additive(patch: tuple) -> bool:
    """Whether it adds its strength times something that does not depend on the weight."""
    _, value, strength_model, _, function = patch
    if strength_model != 1.0 or function is not None:
        return False
    if isinstance(value, LoRAAdapter):
        return value.weights[4] is None and not resizes(value)
    if isinstance(value, (LoHaAdapter, LoKrAdapter)):
        return value.weights[-1] is None  # no DoRA
    return _diff(value) is not None and not resizes(value)


def combine(patches: list[tuple]) -> list[tuple]:
    """The same effect in fewer patches: equal ones become one, with the sum of the strengths, and 0 none."""
    if not all(is_additive(patch) for patch in patches):
        return patches
    sums: dict[Hashable, tuple] = {}
    for strength, value, strength_model, offset, function in patches:
        key = identity_of(value), offset
        before = sums[key][0] if key in sums else 0.0
        sums[key] = before + strength, value, strength_model, offset, function
    return [patch for patch in sums.values() if patch[0] != 0]


def resizes(value) -> bool:
    """Whether the patch gives the weight another shape, as the LoRAs for more input channels do."""
    if isinstance(value, LoRAAdapter):
        return len(value.weights) > 5 and value.weights[5] is not None
    return isinstance(value, tuple) and len(value) == 2 and len(value[1]) > 1 and bool(value[1][1].get("pad_weight"))


def _diff(value) -> Tensor | None:
    """The tensor of a "diff" patch."""
    if not isinstance(value, tuple):
        return None
    if len(value) == 1:
        return value[0]
    return value[1][0] if value[0] == "diff" else None


def refuse_misfit(key: str, value, offset: tuple | None, in_features: int, out_features: int) -> None:
    """Raise LoraError unless a quantized layer can take the patch.

    Args:
        key: the weight it is for, as the host calls it. in_features, out_features: of the layer.
    """
    layer = key.removeprefix("diffusion_model.").removesuffix(".weight")
    if isinstance(value, list):
        raise LoraError(
            f"{layer}: a model cannot be merged into an SVDQuant model. Merge the full-precision models and quantize "
            "the result."
        )
    rows = offset[2] if offset is not None and offset[0] == 0 else out_features
    columns = offset[2] if offset is not None and offset[0] == 1 else in_features
    if resizes(value):
        raise LoraError(f"{layer}: the LoRA changes the shape of the layer, which a 4-bit layer cannot.")
    shapes = _shapes(value)
    if shapes and not any(found[0] in (rows, None) and found[1] in (columns, None) for found in shapes):
        found = " and ".join(f"{n} {what}" for n, what in zip(shapes[0], ("outputs", "inputs"), strict=True) if n)
        raise LoraError(
            f"{layer}: the LoRA has {found}, the layer {rows} outputs and {columns} inputs. "
            "The LoRA was made for another model."
        )


def _shapes(value) -> list[tuple[int | None, int | None]]:
    """The (outputs, inputs) that a patch can have; None where any number will do."""
    if isinstance(value, LoRAAdapter):
        up, down = value.weights[:2]
        fits = up.flatten(1).shape[1] == down.shape[0] or value.weights[3] is not None
        return [(up.shape[0], down.flatten(1).shape[1] if fits else -1)]
    if isinstance(value, LoHaAdapter):
        return [(value.weights[0].shape[-2], value.weights[1].shape[-1])] if value.weights[5] is None else []
    if isinstance(value, LoKrAdapter):
        left, right = kron_shapes(value)
        return [] if value.weights[7] is not None else [(left[0] * right[0], left[1] * right[1])]
    if isinstance(value, GLoRAAdapter):  # an older and a newer order of its factors
        b1, b2 = value.weights[2], value.weights[3]
        return [(b1.shape[0], b2.shape[1]), (b2.shape[0], b1.shape[1])]
    if isinstance(value, (OFTAdapter, BOFTAdapter)):
        return [(value.weights[0].shape[-3] * value.weights[0].shape[-2], None)]
    tensor = _diff(value) if _diff(value) is not None else value[1][0] if isinstance(value, tuple) else None
    return [] if tensor is None or tensor.ndim != 2 else [(tensor.shape[0], tensor.shape[1])]


def kron_shapes(value: LoKrAdapter) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, columns) of the two matrices of a LoKr."""
    left, right, _, left_a, left_b, right_a, right_b = value.weights[:7]
    return (
        (left_a.shape[0], left_b.shape[1]) if left is None else tuple(left.shape[:2]),
        (right_a.shape[0], right_b.shape[1]) if right is None else tuple(right.shape[:2]),
    )
