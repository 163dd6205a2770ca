"""Which layers of a model read one tensor with one smoothing and one down projection, told by their bits.

Formats with a layer for each Linear, comfy-native for one, do not say it; one quantized input serves all of them.
"""

from dataclasses import replace

from ..layer import QuantizedLayer
from ..quantized_model import QuantizedModel
from ..stack import same_bits

_OF_INPUT = ("smooth_factor", "proj_down")


def name_inputs(model: QuantizedModel) -> None:
    """Set QuantizedLayer.input of the pieces of one source, where all of them agree bit for bit and none has a name."""
    groups: dict[str, list[str]] = {}
    for host, layer in model.layers.items():
        name = "" if layer.input else model.architecture.input_name(host)
        if name:
            groups.setdefault(name, []).append(host)
    for name, hosts in groups.items():
        layers = [model.layers[host] for host in hosts]
        if len(layers) > 1 and all(_alike(layer, layers[0]) for layer in layers):
            model.layers |= {host: replace(model.layers[host], input=name) for host in hosts}


def _alike(layer: QuantizedLayer, first: QuantizedLayer) -> bool:
    if len(layer.parts) != 1 or len(first.parts) != 1:
        return False
    part, other = layer.parts[0], first.parts[0]
    if (part.scheme, part.act_unsigned) != (other.scheme, other.act_unsigned):
        return False
    return all(
        name in part.tensors and name in other.tensors and same_bits(part[name], other[name]) for name in _OF_INPUT
    )
