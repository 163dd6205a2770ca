"""Telling MODELs apart by their content, whoever loaded them and wherever the host keeps their weights now."""

from collections.abc import Iterator

from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ....svdq_core.quantize.source import hash_tensors
from .dense_weights import PREFIX


def weights_hash(patcher) -> str:
    """Of the weights without patches."""

    def original(key: str, tensor: Tensor) -> Tensor:
        backup = patcher.backup.get(PREFIX + key)
        return tensor if backup is None else backup.weight

    state = patcher.model.diffusion_model.state_dict()
    return hash_tensors((key, original(key, tensor)) for key, tensor in state.items())


def patches_hash(patcher) -> str:
    """Of the patches (LoRAs) on the weights, with their strengths; "" where there are none."""
    leaves = [leaf for key in sorted(patcher.patches) for leaf in _leaves(key, patcher.patches[key])]
    if not leaves:
        return ""
    tensors = [(name, value) for name, value in leaves if isinstance(value, Tensor)]
    return hash_tensors(tensors, *(f"{name} {value!r}" for name, value in leaves if not isinstance(value, Tensor)))


def _leaves(name: str, value) -> Iterator[tuple[str, object]]:
    """Tensors and numbers within the host's nested patches, under names that say where."""
    if isinstance(value, WeightAdapterBase):
        yield from _leaves(f"{name} {type(value).__name__}", value.weights)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _leaves(f"{name} {key}", value[key])
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(f"{name} {index}", item)
    elif isinstance(value, (Tensor, str, int, float, bool, type(None))):
        yield name, value
    else:
        yield name, type(value).__name__  # a function of the host, say
