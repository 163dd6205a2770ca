"""One quantized Linear and its tensors; how they lie in one block of bytes: blob.py.

A host Linear is made of one or more rectangular parts: FLUX `linear1` is two parts stacked on rows, `linear2` two
stacked on columns, every other layer one part. A part carries the tensors of kernels/format.py.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import Tensor

from ..kernels.layer_call import Factors
from ..kernels.step.fragments import are_fragments
from .arena import Arena
from .errors import CheckpointError
from .padding import padded
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
    def width(self) -> int:
        """Columns of its tensors: in_features, or more; see padding.py."""
        qweight = self["qweight"]
        if are_fragments(qweight):
            return qweight.shape[0] * GROUP_SIZE["int4"]
        return qweight.shape[-1] * (1 if self.scheme == "int8" else 2)

    @property
    def rank(self) -> int:
        proj_up = self.get("proj_up")
        return proj_up.shape[1] if proj_up is not None and proj_up.ndim == 2 else 0

    @property
    def factors(self) -> Factors | None:
        """The low-rank branch, if there is one."""
        proj_down, proj_up = self.get("proj_down"), self.get("proj_up")
        return None if proj_down is None or proj_up is None else Factors(proj_down, proj_up)

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
        wide = padded(self.in_features)
        columns = wide if self.get("qweight") is not None and self.width == wide else self.in_features
        sizes = {
            "N": self.out_features,
            "K": columns,
            "K2": columns // 2,
            "G": columns // GROUP_SIZE[self.scheme],
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
        self._check_scales(where)
        smooth_factor = self.get("smooth_factor")
        if smooth_factor is not None and bool((smooth_factor == 0).any()):
            raise CheckpointError(
                f"{where}: smooth_factor holds zeros, and activations are divided by it. The file is damaged; download "
                "or quantize it again."
            )

    def _check_scales(self, where: str) -> None:
        """Raise CheckpointError where scales make nothing of weights that are there."""
        whole = self.get("wtscale")
        if whole is not None and not bool((whole > 0).all()):
            raise CheckpointError(
                f"{where}: wtscale is {float(whole)}, expected more than 0: all weights are multiplied by it. The file "
                "is damaged; download or quantize it again."
            )
        for name in ("wscales", "wcscales"):
            scales = self.get(name)
            if scales is not None and _all_zero(scales) and not _all_zero(self["qweight"]):
                raise CheckpointError(
                    f"{where}: {name} holds zeros only, and all weights are multiplied by it. The file is damaged; "
                    "download or quantize it again."
                )


def _all_zero(tensor: Tensor) -> bool:
    """Most often told by the first row."""
    return bool(tensor.numel()) and not any(bool(t.float().any()) for t in (tensor[:1], tensor))


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


def with_tensors(part: Part, **tensors: Tensor) -> Part:
    """A copy of the part with some tensors replaced or added."""
    return replace(part, tensors={**part.tensors, **tensors})
