"""One quantized Linear: its tensors, and the single block of bytes that holds them.

A host Linear is made of one or more rectangular parts: FLUX `linear1` is two parts stacked on rows, `linear2` two
stacked on columns, every other layer one part. A part carries the tensors of kernels/format.py.

The host moves, pages and counts one ordinary `weight` for each Linear, so all tensors of a layer are aligned slices of
one flat uint8 tensor, the blob. `BlobLayout` says where each lies; it is plain data and travels as JSON.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from .arena import Arena, aligned, blank
from .errors import CheckpointError
from .schemes import DERIVED, GROUP_SIZE, SCHEME_TENSORS
from .values import FLOAT, check_values


@dataclass(frozen=True)
class Part:
    """A rectangle of a Linear's weight, quantized with one scheme.

    Args:
        scheme: "int4", "nvfp4", "int8" or "awq": a key of SCHEME_TENSORS.
        rows: (start, stop) within the layer's out_features.
        columns: (start, stop) within the layer's in_features.
        act_unsigned: the layer sits behind a GELU and its int4 activations are shifted and unsigned.
        tensors: name -> tensor, shapes and dtypes as SCHEME_TENSORS.
        pieces: (outputs, rank) of each part that it was joined of when the model was loaded; see stack.join_inputs.
    """

    scheme: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    act_unsigned: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)
    pieces: tuple[tuple[int, int], ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def get(self, name: str) -> Tensor | None:
        return self.tensors.get(name)

    @property
    def out_features(self) -> int:
        return self.rows[1] - self.rows[0]

    @property
    def in_features(self) -> int:
        return self.columns[1] - self.columns[0]

    @property
    def rank(self) -> int:
        proj_up = self.get("proj_up")
        return proj_up.shape[1] if proj_up is not None and proj_up.ndim == 2 else 0

    def check(self, where: str) -> None:
        """Raise CheckpointError unless every tensor is there with the right shape, dtype and finite scales.

        Args:
            where: file and layer, for the message.
        """
        table = SCHEME_TENSORS[self.scheme]
        for name in self.tensors.keys() - table.keys():
            raise CheckpointError(f"{where}: unexpected tensor {name} in a {self.scheme} layer.")
        halves = [name for name in ("proj_down", "proj_up") if name not in self.tensors]
        if len(halves) == 1:
            raise CheckpointError(f"{where}: {halves[0]} is missing. The file is incomplete; download it again.")
        ranks = [t.shape[1] for t in (self.get("proj_up"), self.get("proj_down")) if t is not None and t.ndim == 2]
        sizes = {
            "N": self.out_features,
            "K": self.in_features,
            "K2": self.in_features // 2,
            "G": self.in_features // GROUP_SIZE[self.scheme],
            "R": ranks[0] if ranks else "R",
        }
        for name, (symbols, dtypes, required) in table.items():
            tensor = self.get(name)
            if tensor is None:
                if required:
                    raise CheckpointError(f"{where}: {name} is missing. The file is incomplete; download it again.")
                continue
            expected = tuple(sizes.get(s, s) for s in symbols)
            if tuple(tensor.shape) != expected:
                raise CheckpointError(
                    f"{where}: {name} has shape {tuple(tensor.shape)}, expected {expected} for a layer of "
                    f"{self.in_features} inputs and {self.out_features} outputs. The file is damaged or of another "
                    "model."
                )
            check_values(tensor, dtypes, f"{where}: {name}")
        smooth_factor = self.get("smooth_factor")
        if smooth_factor is not None and bool((smooth_factor == 0).any()):
            raise CheckpointError(
                f"{where}: smooth_factor holds zeros, and activations are divided by it. The file is damaged; download "
                "or quantize it again."
            )


@dataclass(frozen=True)
class QuantizedLayer:
    """All parts of one host Linear, and its bias.

    Args:
        in_features, out_features: of the host Linear.
        parts: rectangles that tile the weight.
        bias: (out_features,) or None; for act_unsigned parts it holds the shift correction already.
        arena: memory in which tensors of the parts lie already, or None.
        input: name of the tensor that it reads; layers of one name have the same smoothing and proj_down, bit for bit,
            so that one may take over what another quantized. "" if nothing is known.
    """

    in_features: int
    out_features: int
    parts: tuple[Part, ...]
    bias: Tensor | None = None
    arena: Arena | None = field(default=None, repr=False, compare=False)
    input: str = ""

    @property
    def nbytes(self) -> int:
        tensors = [tensor for part in self.parts for tensor in part.tensors.values()]
        return sum(t.nbytes for t in tensors) + (0 if self.bias is None else self.bias.nbytes)

    def check(self, where: str) -> None:
        """Raise CheckpointError unless every part is sound, they tile the weight, and the bias fits.

        Args:
            where: file and layer, for the message.
        """
        self.check_tiling(where)
        for part in self.parts:
            part.check(where)

    def check_tiling(self, where: str) -> None:
        """The part of check() that does not look into the parts."""
        shared_rows = all(part.rows == (0, self.out_features) for part in self.parts)
        spans = [part.columns if shared_rows else part.rows for part in self.parts]
        others = [part.rows if shared_rows else part.columns for part in self.parts]
        edges = [0, *(stop for _, stop in spans)]
        length, width = (self.in_features, self.out_features)[:: 1 if shared_rows else -1]
        if (
            spans != list(pairwise(edges))
            or edges[-1] != length
            or any(start >= stop for start, stop in spans)
            or any(span != (0, width) for span in others)
        ):
            raise CheckpointError(
                f"{where}: its parts (rows {[p.rows for p in self.parts]}, columns {[p.columns for p in self.parts]}) "
                f"do not tile {self.out_features} outputs and {self.in_features} inputs. The file is damaged."
            )
        if self.bias is not None:
            if tuple(self.bias.shape) != (self.out_features,):
                raise CheckpointError(
                    f"{where}: bias has shape {tuple(self.bias.shape)}, expected ({self.out_features},). The file is "
                    "damaged or of another model."
                )
            check_values(self.bias, FLOAT, f"{where}: bias")

    def without_derived(self) -> "QuantizedLayer":
        """The layer as files hold it."""
        parts = tuple(
            replace(part, tensors={n: t for n, t in part.tensors.items() if n not in DERIVED}) for part in self.parts
        )
        return replace(self, parts=parts)

    def to_blob(self) -> tuple[Tensor, "BlobLayout"]:
        """One flat uint8 tensor that holds every tensor of every part, derived ones last.

        What lies in the layer's arena stays there, so that the blob shares memory with it; everything else is copied.
        """
        slices: list[dict[str, BlobSlice]] = [{} for _ in self.parts]
        parts = [
            BlobPart(p.scheme, p.rows, p.columns, p.act_unsigned, s, p.pieces)
            for p, s in zip(self.parts, slices, strict=True)
        ]
        ordered = [
            (places, name, tensor)
            for derived in (False, True)
            for part, places in zip(self.parts, slices, strict=True)
            for name, tensor in part.tensors.items()
            if (name in DERIVED) == derived
        ]
        starts = None if self.arena is None else self.arena.claim([tensor for *_, tensor in ordered])
        if self.arena is not None and starts is not None:
            blob = self.arena.memory
        else:
            ends = list(accumulate((aligned(tensor.nbytes) for *_, tensor in ordered), initial=0))
            starts, blob = ends[:-1], blank(ends[-1], self.parts[0]["qweight"].device)
        end = 0
        for (places, name, tensor), start in zip(ordered, starts, strict=True):
            place = BlobSlice(start, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            places[name], stop = place, start + aligned(tensor.nbytes)
            if place.read(blob).data_ptr() != tensor.data_ptr():
                place.read(blob).copy_(tensor)
                blob[start + tensor.nbytes : stop] = 0  # gaps are saved too: equal layers, equal bytes
            end = max(end, stop)
        return blob[:end], BlobLayout(self.in_features, self.out_features, tuple(parts), self.input)


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


@dataclass(frozen=True)
class BlobLayout:
    """Where everything lies in the blob of one layer; `input` as in QuantizedLayer."""

    in_features: int
    out_features: int
    parts: tuple[BlobPart, ...]
    input: str = ""

    def read(self, blob: Tensor, bias: Tensor | None = None) -> QuantizedLayer:
        """Views of the blob as a layer, no copy. Do not keep them: the host replaces the bytes behind a parameter."""
        parts = tuple(
            Part(p.scheme, p.rows, p.columns, p.act_unsigned, {n: s.read(blob) for n, s in p.slices.items()}, p.pieces)
            for p in self.parts
        )
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


def with_tensors(part: Part, **tensors: Tensor) -> Part:
    """A copy of the part with some tensors replaced or added."""
    return replace(part, tensors={**part.tensors, **tensors})
