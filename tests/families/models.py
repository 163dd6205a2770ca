"""A tiny model of a family in the host: quantized layers through our loader, and the host's own dense one of them."""

import zlib
from contextlib import contextmanager
from functools import cache
from typing import Any

import comfy.model_detection
import comfy.model_management
import comfy.sd
import torch
from families.network import Family, Sizes, random_tensors, without_memory
from families.registry import FAMILIES
from torch import Tensor

from svdquant_pack.kernels.packing import pack_nibbles
from svdquant_pack.nodes.host.model.build import build_model
from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.layer import Part, QuantizedLayer
from svdquant_pack.svdq_core.models import Architecture
from svdquant_pack.svdq_core.quantized_model import QuantizedModel

RANK = 16


@contextmanager
def detected_as(family: Family, sizes: dict[str, Any] | None = None):
    """The host takes every file for a model of this family with these sizes; None: the tiny one.

    Some families have sizes that detection does not read off the tensors: a tiny file would get the published ones. So
    the host's own configuration of the published model is taken, with the tiny sizes put in.
    """
    original = comfy.model_detection.model_config_from_unet
    config = family.detect(without_memory(family.published_shapes, torch.bfloat16))
    config.unet_config.update(family.tiny if sizes is None else sizes)
    comfy.model_detection.model_config_from_unet = lambda *args, **kwargs: config
    try:
        yield
    finally:
        comfy.model_detection.model_config_from_unet = original


def random_part(scheme: str, rows: tuple[int, int], columns: tuple[int, int], shared: str, own: str) -> Part:
    """A random part of a layer.

    Args:
        scheme: "int4", "nvfp4" or "awq". shared: seed of the smoothing and proj_down. own: seed of all else.
    """
    (outputs, inputs), g = (rows[1] - rows[0], columns[1] - columns[0]), _generator(own)
    codes = torch.randint(-7, 8, (outputs, inputs), generator=g, dtype=torch.int8)
    scales = 0.5 + torch.rand(inputs // (16 if scheme == "nvfp4" else 64), outputs, generator=g)
    size = inputs**-0.5 / 5
    tensors = {"qweight": pack_nibbles(codes), "wscales": (scales * size).bfloat16()}
    if scheme == "awq":
        return Part("awq", rows, columns, False, tensors | {"wzeros": -7.5 * tensors["wscales"]})
    if scheme == "nvfp4":
        tensors |= {"wscales": scales.to(torch.float8_e4m3fn), "wtscale": torch.tensor([size])}
    tensors["proj_up"] = (torch.randn(outputs, RANK, generator=g) * 0.3).bfloat16()
    g = _generator(shared)
    tensors["smooth_factor"] = (0.5 + torch.rand(inputs, generator=g)).bfloat16()
    tensors["proj_down"] = (torch.randn(inputs, RANK, generator=g) * inputs**-0.5).bfloat16()
    return Part(scheme, rows, columns, False, tensors)


def _generator(seed: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(seed.encode()))


@cache
def tiny_tensors(name: str) -> tuple[dict[str, QuantizedLayer], dict[str, Tensor]]:
    """Every Linear of the blocks quantized, and what stays plain, of a tiny model; do not change them."""
    family = FAMILIES[name]
    plain = random_tensors(family.shapes(family.tiny_config))
    layers = {}
    for seed, (layer, (outputs, inputs)) in enumerate(family.layers(family.tiny_config).items()):
        del plain[f"{layer}.weight"]
        scheme = "awq" if seed % 4 == 3 else "nvfp4" if seed % 5 == 4 else "int4"
        part = random_part(scheme, (0, outputs), (0, inputs), layer, layer)
        layers[layer] = QuantizedLayer(inputs, outputs, (part,), plain.pop(f"{layer}.bias", None))
    return layers, plain


def quantized_model(name: str) -> QuantizedModel:
    layers, plain = tiny_tensors(name)
    return QuantizedModel(Architecture(name, name, ()), dict(layers), dict(plain))


def load_quantized(name: str, compute: str = "w4a16"):
    """The tiny model as our MODEL."""
    with detected_as(FAMILIES[name]), torch.inference_mode():
        return build_model(quantized_model(name), compute)


def dense_of(layers: dict[str, QuantizedLayer], plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """float32 tensors of the dense model that a quantized one stands for."""
    plain = {name: tensor.float() for name, tensor in plain.items()}
    biases = {f"{n}.bias": layer.bias.float() for n, layer in layers.items() if layer.bias is not None}
    return plain | biases | {f"{n}.weight": dense_weight(layer) for n, layer in layers.items()}


def load_dense(name: str):
    """The same weights as the host's own MODEL."""
    with detected_as(FAMILIES[name]), torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(dense_of(*tiny_tensors(name)), {"dtype": torch.float32})


def forward(name: str, patcher, sizes: Sizes | None = None, variant: str = "", load: bool = True) -> Tensor:
    """One call of the host's apply_model.

    Args:
        variant: one of the family's `more`, or "". load: whether the host brings the MODEL to the device before.
    """
    family, sizes = FAMILIES[name], sizes or Sizes()
    sizes.generator.manual_seed(sizes.seed)
    config = family.tiny_config
    latent, given = family.inputs(config, sizes)
    given |= family.more[variant](config, sizes) if variant else {}
    if load:
        comfy.model_management.load_models_gpu([patcher])
    device = patcher.load_device
    with torch.inference_mode():
        return patcher.model.apply_model(
            latent.to(device), sizes.number(family.sigma).to(device), **on_device(device, given)
        ).cpu()


def on_device(device: torch.device, value: Any) -> Any:
    """Every tensor of nested arguments on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: on_device(device, item) for key, item in value.items()}
    return [on_device(device, item) for item in value] if isinstance(value, list) else value
