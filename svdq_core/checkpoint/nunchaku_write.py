"""Writing nunchaku files: the inverse of nunchaku_read.py, tensor for tensor."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...kernels.format import GELU_SHIFT
from ...kernels.part_weights import dequantize
from .. import layouts
from ..errors import ArchitectureError
from ..layer import Part, QuantizedLayer
from ..models import Architecture, LinearMap
from ..pieces import join_pieces, swap_row_halves
from ..quantized_model import QuantizedModel
from ..stack import cut, same_bits
from .metadata import nunchaku_metadata, provenance
from .nunchaku_layers import TILE, modulation_outputs, svdquant_outputs
from .nunchaku_names import EXACT, SIGNED_BIAS, writing_spelling
from .output import Output, cast, whole
from .waiting_pieces import WaitingPieces
from .writer import Format

_HALF = (torch.bfloat16, torch.float16)


class NunchakuFormat(Format):
    """The single file that nunchaku, its ComfyUI nodes and this pack read."""

    title = "nunchaku"

    def __init__(self, architecture: Architecture, exact: bool = False, source: str = "", strict: bool = False):
        super().__init__(architecture, exact, source, strict)
        self._pieces = WaitingPieces(architecture)

    def layer_outputs(self, host: str, layer: QuantizedLayer) -> Iterator[Output]:
        found = self.architecture.find_linear(host)
        if self.architecture.generic:
            raise ArchitectureError(
                f"How a nunchaku file would name the layers of a {self.architecture.title} model is not known. Write "
                "svdquant, comfy or bf16."
            )
        if any(part.scheme == "int8" for part in layer.parts):
            raise ArchitectureError(
                f"{host} has 8-bit weights, and a nunchaku file holds 4-bit ones only. Write svdquant or bf16."
            )
        if found is None:
            raise ArchitectureError(
                f"{host} is quantized, and a nunchaku file holds this layer only in 16 bits. Write another format."
            )
        whole_source = self._whole_source(host, found, layer)
        if whole_source is None:
            return  # until all pieces are there
        layer = whole_source
        names = self._names(host, found)
        pieces = cut(layer, found.rectangles(layer.out_features, layer.in_features))
        if pieces is None:
            raise ArchitectureError(
                f"{host} consists of {len(layer.parts)} parts that do not share their smoothing, and a nunchaku file "
                f"holds it as {' and '.join(found.sources)}, each with one smoothing. Write another format."
            )
        for position, (name, (part, bias)) in enumerate(zip(names, pieces, strict=True)):
            if bool(found.modulation_chunks) != (part.scheme == "awq"):
                kind = "AWQ W4A16" if found.modulation_chunks else "SVDQuant W4A4"
                raise ArchitectureError(
                    f"{host} is stored as {part.scheme}, and a nunchaku file holds this layer as {kind} only."
                )
            if found.modulation_chunks:
                yield from self._modulation(name, part, bias, found.modulation_chunks)
            else:
                yield from self._layer(host, name, part, bias, linear=found, unsigned=position in found.unsigned)

    def plain_outputs(self, host: str, tensor: Tensor) -> Iterator[Output]:
        module, _, end = host.rpartition(".")
        linear = self.architecture.find_linear(module)
        if linear is not None:
            names = self._names(module, linear)
            if linear.piece is not None:
                found = self._pieces.put(names[0], end, module, linear, tensor)
                if found is not None:
                    yield whole(f"{names[0]}.{end}", torch.cat(found))
                return
            if linear.apart:
                names = [names[0].removesuffix(linear.sources[0]) + name for name in linear.apart]
                for name, piece in zip(names, tensor.chunk(len(names)), strict=True):
                    yield whole(f"{name}.{end}", piece)
                return
            yield from self._plain_linear(names, linear, end, layouts.swap_halves(tensor) if linear.swapped else tensor)
            return
        place = self.architecture.find_block(host)
        if place is not None and place.rest in place.block.plain:
            form = place.block.plain_map(place.rest)
            spelling = writing_spelling(self.architecture)
            spelled = [spelling.layer(place.block.plain_prefix, place.index, s) for s in form.sources]
            tensor = tensor.unflatten(0, (form.rows, -1)) if form.rows else tensor
            for name, piece in zip(spelled, tensor.chunk(len(spelled)), strict=True):
                yield whole(name, piece)
            return
        source = self.architecture.plain_tensors().get(host)
        if source is None:
            self.note(f"{host} has no place in a nunchaku file and was left out.")
        elif module in self.architecture.swapped_halves:
            yield whole(source, tensor, layouts.swap_halves)
        else:
            yield whole(source, tensor)

    def metadata(self, outline: QuantizedModel) -> dict[str, str]:
        return nunchaku_metadata(outline) | provenance(self.source)

    def finish(self) -> None:
        self._pieces.check_empty()

    def _whole_source(self, host: str, found: LinearMap, layer: QuantizedLayer) -> QuantizedLayer | None:
        """The layer that the file has: the Linear itself, with rows in the file's order, or several Linears joined."""
        if found.swapped:
            swapped = swap_row_halves(layer)
            if swapped is None:
                raise ArchitectureError(
                    f"{host} consists of {len(layer.parts)} parts, and a nunchaku file holds its row halves in the "
                    "other order, which one part only allows. Write another format."
                )
            return swapped
        if found.piece is None:
            return layer
        layers = self._pieces.put(self._names(host, found)[0], "layer", host, found, layer)
        if layers is None:
            return None
        joined = join_pieces(layers)
        if joined is None:
            raise ArchitectureError(
                f"{host} and the other Linears that read its input do not share their smoothing, and a nunchaku file "
                f"holds them as one layer, {found.sources[0]}. Write another format."
            )
        return joined

    def _names(self, host: str, linear: LinearMap) -> list[str]:
        place = self.architecture.find_block(host)
        assert place is not None  # find_linear knew it
        spelling = writing_spelling(self.architecture)
        return [spelling.layer(place.block.source, place.index, source) for source in linear.sources]

    def _plain_linear(self, names: list[str], linear: LinearMap, end: str, tensor: Tensor) -> Iterator[Output]:
        """A Linear that was left in 16 bits, in the pieces that the file knows."""
        if len(names) == 1:
            yield whole(f"{names[0]}.{end}", tensor)
        elif end == "weight":
            for name, (rows, columns) in zip(names, linear.rectangles(*tensor.shape), strict=True):
                yield whole(f"{name}.{end}", tensor[rows[0] : rows[1], columns[0] : columns[1]])
        elif linear.stack == "columns":
            yield whole(f"{names[-1]}.{end}", tensor)
        else:
            width = int(tensor.shape[0] / (linear.shape[0] or 1))
            for name, (rows, _) in zip(names, linear.rectangles(tensor.shape[0], width), strict=True):
                yield whole(f"{name}.{end}", tensor[rows[0] : rows[1]])

    def _layer(
        self, host: str, name: str, part: Part, bias: Tensor | None, *, linear: LinearMap, unsigned: bool
    ) -> Iterator[Output]:
        if part.out_features % TILE or part.in_features % TILE:
            raise ArchitectureError(
                f"{host} has {part.out_features} outputs and {part.in_features} inputs, and a nunchaku file holds "
                f"multiples of {TILE} only. Write another format."
            )
        folded = part.scheme == "int4" and part.act_unsigned != unsigned
        if folded:
            if part.act_unsigned:
                raise ArchitectureError(
                    f"{host} has unsigned activations, and nunchaku runs this layer with signed ones. Write another "
                    "format."
                )
            signed = torch.zeros(part.out_features) if bias is None else bias
            bias = signed.float() - GELU_SHIFT * _residual(part).sum(dim=1)
            self.note(
                "Layers behind a GELU have signed activations; nunchaku runs them shifted and unsigned, so the shift "
                "went into their bias."
            )
            if self.exact:
                yield whole(f"{name}.{SIGNED_BIAS}", signed)
        dtype = _half_dtype(part)
        tensors = {n: self._rounded(name, n, t, dtype) for n, t in part.tensors.items()}
        yield from self._exact(name, part.tensors, tensors)
        stored = None
        if bias is not None:
            stored = self._rounded(name, "bias", bias, dtype)
            yield from self._exact(name, {"bias": bias}, {} if folded else {"bias": stored})
        packed = Part(part.scheme, part.rows, part.columns, part.act_unsigned, tensors)
        suffixes = writing_spelling(self.architecture).suffixes
        if stored is None and (linear.bias or self.architecture.older_suffixes):
            stored = torch.zeros(part.out_features, dtype=dtype)
        yield from svdquant_outputs(name, packed, stored, suffixes)

    def _modulation(self, name: str, part: Part, bias: Tensor | None, chunks: int) -> Iterator[Output]:
        dtype = _half_dtype(part)
        tensors = {n: t if n == "stored_bias" else self._rounded(name, n, t, dtype) for n, t in part.tensors.items()}
        yield from self._exact(name, part.tensors, tensors)
        if self.exact and bias is not None and "stored_bias" not in tensors:
            again = layouts.remove_plus_one(layouts.add_plus_one(bias, chunks, dtype), chunks)
            if not same_bits(again, bias.float()):
                yield whole(f"{name}.{EXACT}bias", bias)
        packed = Part(part.scheme, part.rows, part.columns, False, tensors)
        yield from modulation_outputs(
            name, packed, bias, chunks=chunks, dtype=dtype, suffixes=writing_spelling(self.architecture).suffixes
        )

    def _rounded(self, layer: str, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A tensor in the dtype of the file; codes, fp8 scales and the one scale of a whole tensor stay as they are."""
        if not tensor.dtype.is_floating_point or tensor.dtype == torch.float8_e4m3fn or name == "wtscale":
            return tensor
        return cast(tensor, dtype, f"{layer}.{name}")

    def _exact(self, layer: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> Iterator[Output]:
        """What rounding lost, where it is to be kept."""
        for name, tensor in before.items():
            if self.exact and name in after and not same_bits(after[name].to(tensor.dtype), tensor):
                yield whole(f"{layer}.{EXACT}{name}", tensor)


def _residual(part: Part) -> Tensor:
    """What the codes stand for, in unsmoothed coordinates: (N, K) float32."""
    return dequantize(part.tensors, part.scheme) / part["smooth_factor"].float()


def _half_dtype(part: Part) -> torch.dtype:
    """The 16-bit dtype that a part's tensors have; bfloat16, as published files, where they are wider."""
    names = ("wscales", "smooth_factor", "proj_up", "wcscales")
    return next((part[n].dtype for n in names if n in part.tensors and part[n].dtype in _HALF), torch.bfloat16)


def to_nunchaku(model: QuantizedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of the nunchaku file of a model.

    Raises:
        ArchitectureError: the format cannot hold one of the layers.
    """
    form = NunchakuFormat(model.architecture)
    outputs = [o for host, entry in (model.layers | model.plain).items() for o in form.outputs(host, entry)]
    form.finish()
    return {o.name: o.tensor() for o in sorted(outputs, key=lambda o: o.name)}, nunchaku_metadata(model)
