"""What a layer cannot take of a patch, said before anything is sampled with it.

The host finds out when it merges: it logs a line and leaves the layer as it was, or fails in the middle of a picture.
Here every patch is tried on tensors without memory first, with the host's own arithmetic.
"""

import logging
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.lora
import torch
from comfy.weight_adapter import (
    BOFTAdapter,
    GLoRAAdapter,
    LoHaAdapter,
    LoKrAdapter,
    LoRAAdapter,
    OFTAdapter,
)

from ....svdq_core.errors import LoraError
from .identity import has_values, is_finite, tensors_in
from .kron import kron_shapes
from .patches import adds_nothing, diff_of, resizes

Shape = tuple[int, ...]
_HOST_PREFIX = re.compile(r"^(ERROR|WARNING:?) \w+ weight ")  # the kind of adapter and the key, which we say ourselves
# what tensors of wrong shapes, and attributes that are missing, make the host's arithmetic raise
_DAMAGE = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, NameError)


def refuse_misfit(key: str, value, offset: tuple | None, shape: Shape, strengths: tuple[float, float]) -> None:
    """Raise LoraError unless a quantized layer can take the patch.

    Args:
        key: the weight or bias it is for, as the host calls it. shape: of that tensor.
        offset: (dim, start, length) or None. strengths: of the patch, and what the tensor is multiplied by.
    """
    where = shown(key)
    odd = next((strength for strength in strengths if not math.isfinite(strength)), None)
    if odd is not None:
        raise LoraError(f"{where}: the strength is {odd:g}. Give a number.")
    if isinstance(value, list):
        raise LoraError(
            f"{where}: a model cannot be merged into an SVDQuant model. Merge the full-precision models and quantize "
            "the result."
        )
    if resizes(value):
        raise LoraError(f"{where}: the LoRA changes the shape of the layer, which a 4-bit layer cannot.")
    problem = misfit(value, offset, shape, strengths[0])
    if problem is not None:
        raise LoraError(f"{where}: {problem}")
    if not all(has_values(tensor) for tensor in tensors_in(value)):
        raise LoraError(f"{where}: the patch holds sparse tensors, or some without values. Give ordinary ones.")
    if not all(is_finite(tensor) for tensor in tensors_in(value)):
        raise LoraError(f"{where}: the patch holds NaN or infinite values, of which every picture would become black.")


def shown(key: str) -> str:
    """A weight's key as a user reads it."""
    return key.removeprefix("diffusion_model.").removesuffix(".weight")


def misfit(value, offset: tuple | None, shape: Shape, strength: float = 1.0) -> str | None:
    """Why the host cannot apply a patch to a tensor of this shape, in words; None where it can."""
    if adds_nothing(value):
        return None if strength == 0 else "the patch has no tensor to add. The node that made it expects another model."
    whole = shape
    if offset is not None:
        problem = beyond(offset, shape)
        if problem is not None:
            return problem
        dim, _, length = offset
        shape = *shape[:dim], length, *shape[dim + 1 :]
    try:
        found = _shapes(value)
    except _DAMAGE:
        return "its tensors are not those of any kind of LoRA. The file is damaged."
    if isinstance(value, LoRAAdapter) and value.weights[3] is None:
        up, down = value.weights[:2]
        if up.flatten(1).shape[1] != down.shape[0]:
            return (
                f"lora_up (or B) has rank {up.flatten(1).shape[1]} and lora_down (or A) rank {down.shape[0]}. "
                "The file is damaged."
            )
    if found and len(shape) == 2 and not any(o in (shape[0], None) and i in (shape[1], None) for o, i in found):
        named = zip(found[0], ("outputs", "inputs"), strict=True)
        has = " and ".join(f"{n} {what}" for n, what in named if n is not None)
        return (
            f"the LoRA has {has}, the layer {shape[0]} outputs and {shape[1]} inputs. The LoRA was made for another "
            "model."
        )
    tensor = diff_of(value)
    if tensor is not None and tuple(tensor.shape) != shape and not resizes(value):
        return (
            f"the patch has shape {tuple(tensor.shape)}, the tensor {shape}. The node that made it read this layer as "
            "it is packed, or expects another model."
        )
    if len(shape) == 2 and _is_plain_lora(value):
        return None
    complaint = _try(value, offset, whole)
    return None if complaint is None else f"ComfyUI cannot apply this patch ({complaint}). The file is damaged."


def beyond(offset: tuple | None, shape: Shape) -> str | None:
    """Why a tensor of this shape has no such part, in words; None where it has."""
    if offset is None:
        return None
    dim, start, length = offset
    size = shape[dim] if dim < len(shape) else 0
    if start >= 0 and start + length <= size:
        return None
    what = ("rows", "columns")[dim] if dim < 2 else f"entries of dimension {dim}"
    return (
        f"ComfyUI puts this part of the LoRA into {what} {start} to {start + length}, and the layer has {size}. Its "
        "names for this model do not fit the model's sizes."
    )


def _is_plain_lora(value) -> bool:
    return isinstance(value, LoRAAdapter) and all(item is None for item in value.weights[3:])


def _try(value, offset: tuple | None, shape: Shape) -> str | None:
    """What the host's own arithmetic says to tensors without memory; None where nothing is wrong."""
    weight = torch.empty(shape, device="meta")
    patch = 1.0, value, 1.0, offset, None
    with _complaints() as said:
        try:
            comfy.lora.calculate_weight([patch], weight, "weight", original_weights={"weight": [(weight, None)]})
        except NotImplementedError:
            pass
        except _DAMAGE as error:
            said.append(str(error).split("\n")[0][:200])
    # what needs values cannot be tried without them: OFT asks for the norm of its blocks
    return next((line for line in said if "meta tensor" not in line), None)


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the host logs as a warning or error in this thread; it logs to the root logger, and is not to be seen."""
    said, thread = [], threading.get_ident()

    def take(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        if record.levelno >= logging.WARNING:
            said.append(_HOST_PREFIX.sub("", record.getMessage().split("\n")[0])[:200])
        return False

    root = logging.getLogger()
    root.addFilter(take)
    try:
        yield said
    finally:
        root.removeFilter(take)


def _shapes(value) -> list[tuple[int | None, int | None]]:
    """The (outputs, inputs) that a patch can have; None where any number will do."""
    if isinstance(value, LoRAAdapter):
        up, down = value.weights[:2]
        return [(up.flatten(1).shape[0], down.flatten(1).shape[1])]
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
    tensor = diff_of(value)
    if tensor is None and isinstance(value, tuple):
        tensor = value[1][0]
    return [] if tensor is None or tensor.ndim != 2 else [(tensor.shape[0], tensor.shape[1])]
