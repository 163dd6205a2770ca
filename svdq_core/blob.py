"""The blob: one block of bytes that holds all tensors of a quantized Linear, and the layout that says where.

ComfyUI moves, pages and counts one ordinary `weight` for each Linear, so all tensors of a layer are aligned slices of
one flat uint8 tensor. Derived tensors lie last, so that what files hold is the blob's beginning. A `BlobLayout` is
plain data and travels as JSON:

    {"in_features": K, "out_features": N, "parts": [
        {"scheme": "int4", "rows": [0, N], "columns": [0, K], "act_unsigned": false,
         "slices": {"qweight": {"offset": 0, "shape": [N, K/2], "dtype": "int8"}, ...},
         "pieces": [[outputs, rank], ...]}],                  only in memory; see stack.join_inputs
     "input": "name"}                                         only where it is known
"""

import json
from dataclasses import asdict, dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from .arena import Arena, aligned, blank
from .errors import SVDQuantError
from .fragment_order import as_rows
from .layer import Part, QuantizedLayer
from .schemes import DERIVED


@dataclass(frozen=True)
class BlobSlice:
    """Where one tensor lies in a blob."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    def read(self, blob: Tensor) -> Tensor:
        """A view of the blob, no copy."""
        dtype = getattr(torch, self.dtype)
        count = dtype.itemsize
        for size in self.shape:
            count *= size
        return blob[self.offset : self.offset + count].view(dtype).view(self.shape)


@dataclass(frozen=True)
class BlobPart:
    """Where the tensors of one part lie in a blob."""

    scheme: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    act_unsigned: bool
    slices: dict[str, BlobSlice]
    pieces: tuple[tuple[int, int], ...] = ()

    @property
    def as_in_files(self) -> bool:
        """Whether its tensors, but for the derived ones, are those of a file: not joined, and codes in rows."""
        return not self.pieces and len(self.slices["qweight"].shape) == 2


@dataclass(frozen=True)
class BlobLayout:
    """Where everything lies in the blob of one layer; `input` as in QuantizedLayer."""

    in_features: int
    out_features: int
    parts: tuple[BlobPart, ...]
    input: str = ""

    def read(self, blob: Tensor, bias: Tensor | None = None, *, as_it_lies: bool = False) -> QuantizedLayer:
        """Views of the blob as a layer. Do not keep them: the host replaces the bytes behind a parameter.

        Args:
            as_it_lies: leave codes in fragments (fragment_order.py), which are copied into rows otherwise.

        Raises:
            SVDQuantError: it is no blob; another node has put a tensor of its own in its place.
        """
        if blob.dtype != torch.uint8 or blob.ndim != 1:
            raise SVDQuantError(
                f"A layer of {self.in_features} inputs and {self.out_features} outputs is packed in 4 bits, and its "
                f"weight is now {str(blob.dtype).removeprefix('torch.')} {tuple(blob.shape)}: another node has put a "
                "tensor of its own there. Use that node with the full-precision model."
            )
        parts = tuple(
            Part(p.scheme, p.rows, p.columns, p.act_unsigned, {n: s.read(blob) for n, s in p.slices.items()}, p.pieces)
            for p in self.parts
        )
        parts = parts if as_it_lies else tuple(as_rows(part) for part in parts)
        return QuantizedLayer(self.in_features, self.out_features, parts, bias, input=self.input)

    def without_derived(self, blob: Tensor) -> tuple[Tensor, "BlobLayout"]:
        """What files hold of a blob, a view of it, and where everything lies in that."""
        starts = [s.offset for part in self.parts for name, s in part.slices.items() if name in DERIVED]
        if not starts:
            return blob, self
        parts = tuple(
            replace(part, slices={n: s for n, s in part.slices.items() if n not in DERIVED}) for part in self.parts
        )
        return blob[: min(starts)], replace(self, parts=parts)

    def to_json(self) -> str:
        """As files hold it: parts that are joined are taken apart before."""
        raw = asdict(self)
        for part in raw["parts"]:
            if not part["pieces"]:
                del part["pieces"]
        if not raw["input"]:
            del raw["input"]
        return json.dumps(raw, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "BlobLayout":
        raw = json.loads(text)
        parts = tuple(
            BlobPart(
                p["scheme"],
                tuple(p["rows"]),
                tuple(p["columns"]),
                p["act_unsigned"],
                {n: BlobSlice(s["offset"], tuple(s["shape"]), s["dtype"]) for n, s in p["slices"].items()},
                tuple((outputs, rank) for outputs, rank in p.get("pieces", ())),
            )
            for p in raw["parts"]
        )
        return BlobLayout(raw["in_features"], raw["out_features"], parts, str(raw.get("input", "")))


def side_by_side(layer: QuantizedLayer) -> QuantizedLayer:
    """The layer with its tensors in an arena: whoever reads it copies, by several threads, and to_blob does not."""
    tensors = [tensor for part in layer.parts for tensor in part.tensors.values()]
    derived = sum(aligned(part.out_features * torch.float32.itemsize) for part in layer.parts)
    arena = Arena(sum(aligned(tensor.nbytes) for tensor in tensors) + derived)
    parts = tuple(
        replace(part, tensors={name: arena.copy(tensor) for name, tensor in part.tensors.items()})
        for part in layer.parts
    )
    return replace(layer, parts=parts, arena=arena)


def to_blob(layer: QuantizedLayer) -> tuple[Tensor, BlobLayout]:
    """One flat uint8 tensor that holds every tensor of every part, derived ones last.

    What lies in the layer's arena stays there, so that the blob shares memory with it; everything else is copied.
    """
    slices: list[dict[str, BlobSlice]] = [{} for _ in layer.parts]
    parts = [
        BlobPart(p.scheme, p.rows, p.columns, p.act_unsigned, s, p.pieces)
        for p, s in zip(layer.parts, slices, strict=True)
    ]
    ordered = [
        (places, name, tensor)
        for derived in (False, True)
        for part, places in zip(layer.parts, slices, strict=True)
        for name, tensor in part.tensors.items()
        if (name in DERIVED) == derived
    ]
    starts = None if layer.arena is None else layer.arena.claim([tensor for *_, tensor in ordered])
    if layer.arena is not None and starts is not None:
        blob = layer.arena.memory
    else:
        ends = list(accumulate((aligned(tensor.nbytes) for *_, tensor in ordered), initial=0))
        starts, blob = ends[:-1], blank(ends[-1], layer.parts[0]["qweight"].device)
    end = 0
    for (places, name, tensor), start in zip(ordered, starts, strict=True):
        place = BlobSlice(start, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        places[name], stop = place, start + aligned(tensor.nbytes)
        if place.read(blob).data_ptr() != tensor.data_ptr():
            place.read(blob).copy_(tensor)
            blob[start + tensor.nbytes : stop] = 0  # gaps are saved too: equal layers, equal bytes
        end = max(end, stop)
    return blob[:end], BlobLayout(layer.in_features, layer.out_features, tuple(parts), layer.input)
