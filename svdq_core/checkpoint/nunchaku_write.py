"""Writing nunchaku files: the inverse of nunchaku_read.py, tensor for tensor.

FLUX goes out under the older names, which every nunchaku release reads; PixArt under the newer ones.
"""

from collections.abc import Iterator

from torch import Tensor

from .. import layouts
from ..errors import ArchitectureError
from ..layer import QuantizedLayer
from ..model import QuantizedModel
from ..models import Architecture, LinearMap
from .metadata import nunchaku_metadata
from .nunchaku_layers import pack_layer, pack_modulation
from .nunchaku_names import Spelling, writing_spelling


def to_nunchaku(model: QuantizedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of the nunchaku file of a model.

    Raises:
        ArchitectureError: the format cannot hold one of the layers.
    """
    architecture = model.architecture
    spelling = writing_spelling(architecture)
    tensors = dict(_tensors(model, architecture, spelling))
    return {name: t.contiguous() for name, t in sorted(tensors.items())}, nunchaku_metadata(model)


def _tensors(model: QuantizedModel, architecture: Architecture, spelling: Spelling) -> Iterator[tuple[str, Tensor]]:
    counts = architecture.count_blocks([*model.layers, *model.plain], "host")
    for block in architecture.blocks:
        for index in range(counts[block.host]):
            for linear in block.linears:
                host = f"{block.host}.{index}.{linear.host}"
                names = [spelling.layer(block.source, index, source) for source in linear.sources]
                if host in model.layers:
                    write = _modulation if linear.modulation_chunks else _layer
                    yield from write(model.layers[host], linear, names, spelling)
                else:
                    yield from _unquantized(model, host, linear, names)
            for host, sources in block.plain.items():
                tensor = model.plain[f"{block.host}.{index}.{host}"]
                for source, piece in zip(sources, tensor.chunk(len(sources)), strict=True):
                    yield spelling.layer(block.source, index, source), piece
    for host, source in architecture.plain_tensors().items():
        if host in model.plain:
            swapped = host.rpartition(".")[0] in architecture.swapped_halves
            yield source, layouts.swap_halves(model.plain[host]) if swapped else model.plain[host]


def _unquantized(model: QuantizedModel, host: str, linear: LinearMap, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    if len(names) > 1:
        raise ArchitectureError(
            f"{host} is not quantized, and a nunchaku file can hold it only split in {len(names)} quantized layers. "
            "Quantize it as well."
        )
    for end in ("weight", "bias"):
        if f"{host}.{end}" in model.plain:
            yield f"{names[0]}.{end}", model.plain[f"{host}.{end}"]


def _layer(
    layer: QuantizedLayer, linear: LinearMap, names: list[str], spelling: Spelling
) -> Iterator[tuple[str, Tensor]]:
    for name, part in zip(names, layer.parts, strict=True):
        dtype = part["smooth_factor"].dtype
        if linear.stack == "rows":
            bias = None if layer.bias is None else layer.bias[part.rows[0] : part.rows[1]]
        else:
            bias = layer.bias if part is layer.parts[-1] else part.get("bias")
        for canonical, tensor in pack_layer(part, bias, dtype).items():
            yield f"{name}.{spelling.suffixes[canonical]}", tensor


def _modulation(
    layer: QuantizedLayer, linear: LinearMap, names: list[str], spelling: Spelling
) -> Iterator[tuple[str, Tensor]]:
    (name,), (part,) = names, layer.parts
    packed = pack_modulation(part, layer.bias, linear.modulation_chunks, part["wscales"].dtype)
    for canonical, tensor in packed.items():
        yield f"{name}.{spelling.suffixes[canonical]}", tensor
