"""GELUs that a layer in front of them or behind them computes itself: one pass over the activations less.

Modules keep their names and their order. Where a GELU stood now stands one that passes its input on; the layer in front
or behind knows that a GELU is missing. In FLUX's single blocks it is missing in some columns of linear1's result, which
linear2 reads; the torch.cat between them is saved, too, as joined.py says. Where neither can compute it, it stays, as a
kernel: it gathers columns of a wider matrix, and torch.cat is four times as slow where those are apart (H200, 4608
tokens: 0.286 against 0.071 ms).
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ....svdq_core.row_ops import gelu_of_rows
from .joined import Columns
from .quantized_linear import SVDQuantLinear

SWITCH = "SVDQUANT_FOLD_GELU"  # environment: 0 folds nowhere, 1 also where it is not known to be faster


class FoldedGELU(nn.Module):
    """Stands where a GELU stood; a neighbour applies it, unless others compute something around that layer's forward.

    Args:
        layer: the neighbour.
    """

    def __init__(self, layer: SVDQuantLinear):
        super().__init__()
        self.neighbour = (layer,)  # in a tuple, or it would be a submodule of this one as well

    @property
    def computes(self) -> bool:
        """Whether it has to compute the GELU after all."""
        return self.neighbour[0].wrapped or self.neighbour[0].gelu is None

    def forward(self, x: Tensor) -> Tensor:
        return gelu_of_rows(x) if self.computes else x


class FoldedGELUOfColumns(FoldedGELU):
    """Stands where the GELU of a FLUX single block stood; linear1 or linear2 applies it to its columns."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or self.computes:
            return super().forward(x)
        return x.as_subclass(Columns)


class KernelGELU(nn.Module):
    """GELU (tanh) of rows that may be apart, by a kernel on GPUs for which there are some."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu_of_rows(x)


def wants_folding(usual: str | None) -> str | None:
    """Into what to fold.

    Args:
        usual: what the kernels' table says about this GPU: "output", "input" or None.
    """
    return {"0": None, "1": usual or "input"}.get(os.environ.get(SWITCH, ""), usual)


def fold_gelus(model: nn.Module, where: str) -> int:
    """Hand GELUs between quantized layers to one of them; return how many.

    Args:
        where: "output": to the layer in front; "input": to the layer behind, if it can apply it.
    """
    count = 0
    for owner, name, front, behind in list(_gelus(model)):
        linear = getattr(owner, front if where == "output" else behind)
        if not isinstance(linear, SVDQuantLinear) or not linear.can_apply_gelu(where):
            continue
        linear.gelu = where
        setattr(owner, name, FoldedGELU(linear))
        count += 1
    block: Any  # FLUX's single blocks
    for block in model.modules():
        if not _is_gelu(getattr(block, "mlp_act", None)):
            continue
        linear = block.linear1 if where == "output" else block.linear2
        width = linear.out_features if where == "output" else linear.in_features
        columns = block.mlp_hidden_dim
        assert isinstance(columns, int), "what a single block splits linear1's result by, and joins linear2's input of"
        first = width - columns
        if isinstance(linear, SVDQuantLinear) and linear.can_apply_gelu(where, first):
            linear.gelu, linear.gelu_from = where, first
            block.mlp_act = FoldedGELUOfColumns(linear)
            count += 1
    return count


def speed_up_gelus(model: nn.Module) -> None:
    """Let a kernel compute the GELUs that stay in FLUX's single blocks."""
    for module in model.modules():
        if _is_gelu(getattr(module, "mlp_act", None)):
            module.mlp_act = KernelGELU()


def _is_gelu(module: Any) -> bool:
    return type(module) is nn.GELU and module.approximate == "tanh"


def _gelus(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, str]]:
    """(what holds a GELU, its name there, the names of the layers in front of it and behind it).

    Only where the module that holds it is what calls it: since ComfyUI 0.33, Wan's Sequential has a forward of its own,
    which computes the GELU as a function and leaves the module aside.
    """
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            if type(module).forward is not nn.Sequential.forward:
                continue
            names = list(module._modules)
            candidates = list(zip(names[1:], names, names[2:], strict=False))
        elif hasattr(module, "fc2") and isinstance(getattr(module, "norm", None), nn.Identity):  # PixArt, from timm
            candidates = [("act", "fc1", "fc2")]
        else:
            continue
        for name, front, behind in candidates:
            if _is_gelu(getattr(module, name)):
                yield module, name, front, behind
