"""What one call of a model is given: which parts of it are tensors, and which decide what is computed.

A graph computes again from the same memory. So every tensor of a call gets a place of its own that the graph reads, and
later calls are copied there; everything else is part of the key under which the graph is kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PRIMITIVES = (bool, int, float, str, bytes, type(None))


class UnseenError(Exception):
    """A value that may change what is computed without being seen."""


def split(value: Any, tensors: list[Tensor]) -> Any:
    """A hashable description of a value, in which tensors stand by form; they are appended to `tensors`.

    Raises:
        UnseenError: the value holds something whose changes would go unseen.
    """
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, torch.nn.Parameter):
            raise UnseenError(f"a tensor of class {type(value).__name__}")
        tensors.append(value)
        return "tensor", value.dtype, value.device, tuple(value.shape), value.stride()
    if isinstance(value, (list, tuple)):
        return type(value).__name__, *(split(item, tensors) for item in value)
    if isinstance(value, dict):
        return "dict", *((name, split(item, tensors)) for name, item in value.items())
    if isinstance(value, PRIMITIVES):
        return type(value).__name__, value
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    raise UnseenError(f"an object of class {type(value).__name__}")


def replace(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same value with other tensors, asked for in the order of split()."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(replace(item, change) for item in value)
    if isinstance(value, dict):
        return {name: replace(item, change) for name, item in value.items()}
    return value


class StaticInputs:
    """A call whose tensors keep their places: later calls of the same form are copied there.

    Args:
        call: nested lists and dictionaries; its tensors are copied, and never written to.
        device: where all of them go. Samplers keep conditionings in main memory, and the host moves them in each step.
    """

    def __init__(self, call: Any, device: torch.device):
        self.device = device
        self._places: list[Tensor] = []
        self.call = replace(call, self._place)

    def _place(self, tensor: Tensor) -> Tensor:
        place = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)
        place.copy_(tensor)
        self._places.append(place)
        return place

    def fill(self, tensors: list[Tensor]) -> None:
        """Copy the tensors of another call, as split() found them, to their places."""
        for place, tensor in zip(self._places, tensors, strict=True):
            place.copy_(tensor)
