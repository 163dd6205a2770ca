"""A whole quantized model in memory, under the host's names: what readers return and writers take."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .layer import QuantizedLayer
from .models import Architecture


@dataclass
class QuantizedModel:
    """Args:
    architecture: which family it is.
    layers: host module name -> quantized layer.
    plain: host tensor name -> unquantized tensor.
    metadata: key -> text, as a file carries it.
    notes: what a user should know of where it comes from, one sentence each.
    """

    architecture: Architecture
    layers: dict[str, QuantizedLayer] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """ "int4", "nvfp4" or "int8": the scheme of the SVDQuant parts."""
        schemes = {part.scheme for layer in self.layers.values() for part in layer.parts}
        return next((scheme for scheme in ("nvfp4", "int8") if scheme in schemes), "int4")

    @property
    def ranks(self) -> list[int]:
        """The ranks that occur in the SVDQuant parts, ascending."""
        return sorted({p.rank for layer in self.layers.values() for p in layer.parts if p.scheme != "awq"})

    @property
    def half_dtype(self) -> torch.dtype:
        """The 16-bit dtype of the full-precision model: the one that most 16-bit numbers of the file are in."""
        counts: Counter[torch.dtype] = Counter()
        tensors = [t for layer in self.layers.values() for part in layer.parts for t in part.tensors.values()]
        for tensor in (*tensors, *(x.bias for x in self.layers.values() if x.bias is not None), *self.plain.values()):
            if tensor.dtype in (torch.bfloat16, torch.float16):
                counts[tensor.dtype] += tensor.numel()
        return max(counts, key=counts.__getitem__, default=torch.bfloat16)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in (*self.layers.values(), *self.plain.values()))
