"""Names that LoRAs have for a family's layers and that ComfyUI's key map lacks, from the family's description.

For most families ComfyUI knows diffusers' names itself. For MiniMax H3 it knows its own alone: there diffusers' q, k
and v are rows of one layer, and the row halves of the MLP's first layer stand in the other order.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ....svdq_core.checkpoint.recognize import recognize_host
from ....svdq_core.errors import CheckpointError, LoraError
from ....svdq_core.models import ARCHITECTURES, Architecture, LinearMap

PREFIX = "diffusion_model."

# ends of tensors with a layer's outputs along their rows; of these, and of no others, the rows can change places
_OF_ROWS = (
    *(".lora_B.weight", ".lora_up.weight", ".lora.up.weight", "_lora.up.weight", ".lora_linear_layer.up.weight"),
    *(".lora_B", ".diff", ".diff_b", ".set_weight", ".hada_w1_a", ".hada_w2_a"),
)
_OF_COLUMNS = (
    *(".lora_A.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight", ".lora_A", ".alpha"),
    *(".lora_linear_layer.down.weight", ".hada_w1_b", ".hada_w2_b", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b"),
    ".lokr_w1_b",
)


class NamedWeight(NamedTuple):
    """What a name stands for.

    Args:
        target: as in the host's key map: a weight's key, or (key, (dim, start, length)).
        swapped: the row halves stand in the other order.
    """

    target: str | tuple
    swapped: bool = False


def family_names(patcher) -> dict[str, NamedWeight]:
    """Module as diffusers calls it -> what it is in the host's model; {} where the host knows such names itself."""
    network = patcher.model.diffusion_model
    names = list(network.state_dict())
    family = _family(patcher, names)
    if family is None or family.lora is None or family.lora.diffusers:
        return {}
    modules, found = dict(network.named_modules()), {}
    for block in family.blocks:
        for index in range(family.count_blocks(names, "host")[block.host]):
            for linear in block.linears:
                host = f"{block.host}.{index}.{linear.host}"
                module = modules.get(host)
                outputs, inputs = getattr(module, "out_features", None), getattr(module, "in_features", None)
                if isinstance(outputs, int) and isinstance(inputs, int):
                    for source, named in _of_linear(linear, f"{PREFIX}{host}.weight", (outputs, inputs)):
                        found[f"{block.source}.{index}.{source}"] = named
    for host, source in family.modules.items():
        if host in modules:
            found.setdefault(source, NamedWeight(f"{PREFIX}{host}.weight"))
    return found


def family_title(patcher) -> str:
    """What a user calls the family of a MODEL; the class of ComfyUI's model where it is not described here."""
    own = getattr(patcher.model, "svdquant_architecture", None)
    family = own if own is not None else _family(patcher, list(patcher.model.diffusion_model.state_dict()))
    return type(patcher.model).__name__ if family is None or family.title == "unknown" else family.title


def _family(patcher, names: list[str]) -> Architecture | None:
    own = getattr(patcher.model, "svdquant_architecture", None)
    if own is not None and own.name in ARCHITECTURES:
        return ARCHITECTURES[own.name]
    try:
        return recognize_host("", names)
    except CheckpointError:
        return None


def _of_linear(linear: LinearMap, key: str, sizes: tuple[int, int]) -> Iterator[tuple[str, NamedWeight]]:
    """(source module, what it stands for) of one Linear."""
    if linear.piece is not None:
        return  # one of several Linears that a source holds: a LoRA on that source has no one place
    if len(linear.sources) == 1:
        yield linear.sources[0], NamedWeight(key, linear.swapped)
        return
    dim = 0 if linear.stack == "rows" else 1
    for source, rectangle in zip(linear.sources, linear.rectangles(*sizes), strict=True):
        start, stop = rectangle[dim]
        yield source, NamedWeight((key, (dim, start, stop - start)))


def swap_halves(name: str, suffix: str, tensor: Tensor) -> Tensor:
    """A tensor of a LoRA for a layer whose row halves change places.

    Args:
        name: of the module, for the message. suffix: how the key ends, as the host knows it.

    Raises:
        LoraError: it is of a kind whose rows cannot change places on their own.
    """
    if suffix.endswith(_OF_COLUMNS):
        return tensor
    scales = suffix == ".dora_scale" and tensor.ndim > 1 and tensor.shape[0] == 1
    left = suffix in (".lokr_w1", ".lokr_w1_a")  # whose rows are blocks of the layer's
    if scales:
        return tensor
    if not (suffix in _OF_ROWS or suffix == ".dora_scale" or left) or tensor.ndim == 0 or tensor.shape[0] % 2:
        raise LoraError(
            f"{name}{suffix}: ComfyUI keeps the two halves of this layer in the other order, and a LoRA of this kind "
            "cannot be brought into it. Ask for one with ComfyUI's own names."
        )
    return torch.cat(tensor.chunk(2)[::-1])
