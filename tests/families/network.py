"""One model family of the host: its class, its published sizes, and a tiny model of it.

Names and shapes come from the host's class on the meta device, so there is no table of them here.
"""

import importlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.memory_management
import comfy.model_detection
import comfy.ops
import torch
from torch import Tensor, nn

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))

LARGEST_RANDOM = 2**24  # elements: tables of words that no forward here looks anything up in


def published(name: str) -> dict[str, Any]:
    """What detection must find in the published model of a family: arguments of the host's class."""
    return PUBLISHED[name]


@dataclass(frozen=True)
class Sizes:
    """What a forward is asked for; everything random is drawn from one seed.

    Args:
        batch: pictures. side: height and width of the latent, in a family whose patches are 2 wide.
        frames: of a video's latent. tokens: of the text.
    """

    batch: int = 1
    side: tuple[int, int] = (16, 16)
    frames: int = 2
    tokens: int = 12
    seed: int = 1
    generator: torch.Generator = field(default_factory=torch.Generator, compare=False, repr=False)

    def normal(self, *shape: int) -> Tensor:
        """(batch, *shape)."""
        return torch.randn(self.batch, *shape, generator=self.generator)

    def image(self, channels: int, shrink: int = 1) -> Tensor:
        """A latent, smaller by `shrink` where a patch is one latent pixel."""
        return self.normal(channels, *(n // shrink for n in self.side))

    def video(self, channels: int, shrink: int = 2) -> Tensor:
        return self.normal(channels, self.frames, *(n // shrink for n in self.side))

    def text(self, width: int) -> Tensor:
        return self.normal(self.tokens, width)

    def number(self, value: float) -> Tensor:
        return torch.full((self.batch,), value)


@dataclass(frozen=True)
class Family:
    """A family.

    Args:
        network: the host's class, "module:Class" below comfy.ldm.
        published: what detection must find in the published model, and the class's arguments for it.
        tiny: arguments of the tiny model that differ.
        inputs: (arguments, sizes) -> (latent, further arguments of the host's apply_model).
        metadata: of the published file; some families are told apart by it.
        sigma: noise level of the forward.
        more: title of a variant -> (arguments, sizes) -> arguments of apply_model on top.
        batches: whether the class takes more than one picture.
    """

    network: str
    published: dict[str, Any]
    tiny: dict[str, Any]
    inputs: Callable[[dict[str, Any], Sizes], tuple[Tensor, dict[str, Any]]]
    metadata: dict[str, str] | None = None
    sigma: float = 0.6
    more: dict[str, Callable[[dict[str, Any], Sizes], dict[str, Any]]] = field(default_factory=dict)
    batches: bool = True

    @property
    def tiny_config(self) -> dict[str, Any]:
        return self.published | self.tiny

    def build(self, config: dict[str, Any]) -> nn.Module:
        """The host's network without memory."""
        module, name = self.network.split(":")
        network = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
        how = {"device": "meta", "dtype": torch.bfloat16, "operations": comfy.ops.disable_weight_init}
        with patch.object(comfy.memory_management, "aimdo_enabled", False):  # else its Linears have no weights yet
            return network(**config, **how).eval()

    def shapes(self, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of a file with these sizes."""
        return self._shapes(self.build(config), config)

    @staticmethod
    def _shapes(network: nn.Module, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        if "pe_interpolation" in config:  # the host reads it off the file and keeps none
            side = config["input_size"] // config["patch_size"]
            shapes["pos_embed"] = (1, side * side, config["hidden_size"])
        return shapes

    @cached_property
    def _published(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, int]], list[str]]:
        network = self.build(self.published)
        return self._shapes(network, self.published), linears_of(network), stacks_of(network)

    @property
    def published_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._published[0]

    @property
    def published_layers(self) -> dict[str, tuple[int, int]]:
        """Name -> (outputs, inputs) of every Linear of the blocks that a group of 64 fits."""
        return self._of_blocks(self._published[1])

    def layers(self, config: dict[str, Any]) -> dict[str, tuple[int, int]]:
        """The same of a model with these sizes."""
        return self._of_blocks(linears_of(self.build(config)))

    def _of_blocks(self, linears: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        stacks = tuple(self._published[2])  # by the published model: a tiny one may have one block
        return {
            name: size
            for name, size in linears.items()
            if size[1] % 64 == 0 and (name.startswith(stacks) or ".transformer_blocks." in name)
        }

    def detect(self, state_dict: dict[str, Tensor]):
        """The host's model_config, or None."""
        return comfy.model_detection.model_config_from_unet(dict(state_dict), "", metadata=self.metadata)


def linears_of(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (outputs, inputs)."""
    linears = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    return {name: (module.out_features, module.in_features) for name, module in linears.items()}


def stacks_of(network: nn.Module) -> list[str]:
    """Lists whose members are of one class and hold Linears, without lists within them."""
    found = [
        f"{name}."
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) > 1
        and len({type(member) for member in module}) == 1
        and any(isinstance(part, nn.Linear) for part in module.modules())
        and not isinstance(module[0], nn.Linear)
    ]
    return [name for name in found if not any(other != name and name.startswith(other) for other in found)]


def without_memory(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of these shapes, one element each in memory."""
    return {name: torch.zeros(1, dtype=dtype).expand(shape or (1,)).view(shape) for name, shape in shapes.items()}


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """float32 weights with which activations neither vanish nor explode."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        if math.prod(shape) > LARGEST_RANDOM:
            tensors[name] = torch.zeros(1).expand(shape)
            continue
        tensor, end = torch.randn(shape, generator=generator), name.rpartition(".")[2]
        if end == "inv_freq":
            tensor = 100.0 ** -torch.linspace(0, 1, shape[0])
        elif "norm" in name and end in ("weight", "scale"):
            tensor = 1 + 0.1 * tensor
        elif len(shape) < 2:
            tensor *= 0.05
        elif "table" not in name and "embed" not in end:
            tensor *= math.prod(shape[1:]) ** -0.5
        tensors[name] = tensor
    return tensors


def differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Keys of `wanted` that were found otherwise, or not at all."""

    def comparable(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    missing = [key for key in wanted if key not in found]
    return missing + [k for k, v in wanted.items() if k in found and comparable(found[k]) != comparable(v)]
