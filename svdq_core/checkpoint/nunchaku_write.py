"""Writing nunchaku files: the inverse of nunchaku_read.py, tensor for tensor.

FLUX goes out under the older names, which every nunchaku release reads; PixArt under the newer ones.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import layouts
from ..errors import ArchitectureError
from ..layer import QuantizedLayer
from ..model import QuantizedModel
from ..models import Architecture, LinearMap
from .metadata import nunchaku_metadata
from .nunchaku_names import Spelling, newer_spelling, older_spelling

AWQ_GROUP_ROWS = 16  # scale rows of a modulation layer are padded with zeros to a multiple of it


def to_nunchaku(model: QuantizedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of the nunchaku file of a model.

    Raises:
        ArchitectureError: the format cannot hold one of the layers.
    """
    architecture = model.architecture
    spelling = newer_spelling(architecture) if not architecture.newer_names else older_spelling()
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


def _unquantized(
    model: QuantizedModel, host: str, linear: LinearMap, names: list[str]
) -> Iterator[tuple[str, Tensor]]:
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
        tensors = dict(part.tensors)
        dtype = part["smooth_factor"].dtype
        if linear.stack == "rows":
            bias = None if layer.bias is None else layer.bias[part.rows[0] : part.rows[1]]
        else:
            bias = layer.bias if part is layer.parts[-1] else tensors.get("bias")
        # the older loaders expect a bias in every layer
        bias = torch.zeros(part.out_features, dtype=dtype) if bias is None else bias.to(dtype)
        tensors["bias"] = bias
        tensors.setdefault("smooth_factor_orig", tensors["smooth_factor"])
        for canonical, tensor in tensors.items():
            yield f"{name}.{spelling.suffixes[canonical]}", layouts.NUNCHAKU[canonical].to_stored(tensor)


def _modulation(
    layer: QuantizedLayer, linear: LinearMap, names: list[str], spelling: Spelling
) -> Iterator[tuple[str, Tensor]]:
    (name,), (part,), chunks = names, layer.parts, linear.modulation_chunks
    qweight = layouts.rows_to_interleaved(part["qweight"], chunks)
    yield f"{name}.{spelling.suffixes['qweight']}", layouts.awq_qweight_to_nunchaku(qweight)
    dtype = part["wscales"].dtype
    for scale in ("wscales", "wzeros"):
        natural = layouts.rows_to_interleaved(part[scale], chunks, dim=1)
        padding = natural.new_zeros(-natural.shape[0] % AWQ_GROUP_ROWS, natural.shape[1])
        yield f"{name}.{spelling.suffixes[scale]}", torch.cat((natural, padding))
    if layer.bias is not None:
        stored = part.get("stored_bias")
        bias = layouts.add_plus_one(layer.bias, chunks, dtype) if stored is None else stored
        yield f"{name}.{spelling.suffixes['bias']}", layouts.rows_to_interleaved(bias, chunks)
