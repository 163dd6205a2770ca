"""The host's patches on one weight: which add up, and which come to a factor on the whole weight.

A patch is the host's tuple (strength, value, strength_model, offset, function); the value is a weight adapter (LoRA,
LoKr, ...), a tuple such as ("diff", (tensor,)), or a list when another model is merged in. The weight is multiplied by
strength_model before the value is added. An offset (dim, start, length) restricts a patch to some rows (dim 0) or
columns (dim 1) of the weight. The value (None,) at strength 0 is the host's way to scale a weight and add nothing.
"""

from collections.abc import Hashable

from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter
from torch import Tensor

from .identity import identity_of


def is_additive(patch: tuple) -> bool:
    """Whether it adds its strength times something that does not depend on the weight."""
    _, value, strength_model, _, function = patch
    if strength_model != 1.0 or function is not None:
        return False
    if isinstance(value, LoRAAdapter):
        return value.weights[4] is None and not resizes(value)
    if isinstance(value, (LoHaAdapter, LoKrAdapter)):
        return value.weights[-1] is None  # no DoRA
    return diff_of(value) is not None and not resizes(value)


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


def fold_scales(patches: list[tuple]) -> tuple[float, list[tuple]]:
    """One factor on the whole weight, and what is added to that; (1, patches as they are) where it is no such sum.

    The host multiplies before it adds, so a factor acts on all that was added before it.
    """
    scale, folded = 1.0, []
    for strength, value, strength_model, offset, function in patches:
        plain = strength, value, 1.0, offset, function
        if (strength_model != 1.0 and offset is not None) or not (adds_nothing(value) or is_additive(plain)):
            return 1.0, patches
        scale *= strength_model
        folded = [(s * strength_model, *rest) for s, *rest in folded]
        if not adds_nothing(value):
            folded.append(plain)
    return scale, combine(folded)


def adds_nothing(value) -> bool:
    """Whether it is there for its strength_model alone."""
    return isinstance(value, tuple) and len(value) == 1 and value[0] is None


def resizes(value) -> bool:
    """Whether the patch gives the weight another shape, as the LoRAs for more input channels do."""
    if isinstance(value, LoRAAdapter):
        return len(value.weights) > 5 and value.weights[5] is not None
    return isinstance(value, tuple) and len(value) == 2 and len(value[1]) > 1 and bool(value[1][1].get("pad_weight"))


def diff_of(value) -> Tensor | None:
    """The tensor of a patch that adds one."""
    if not isinstance(value, tuple):
        return None
    if len(value) == 1:
        return value[0]
    return value[1][0] if value[0] == "diff" else None
