"""GELUs that a layer in front of them or behind them computes itself: one pass over the activations less.

Modules keep their names and their order. Where a GELU stood now stands one that passes its input on; the layer knows
from which column of its result, or of its input, on a GELU is missing.
"""

import os
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .linear import SVDQuantLinear

SWITCH = "SVDQUANT_FOLD_GELU"  # environment: 0 folds nowhere, 1 also where it is not known to be faster


class FoldedGELU(nn.Module):
    """Stands where a GELU stood; a neighbour applies it."""

    def forward(self, x: Tensor) -> Tensor:
        return x


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
    found = list(_gelus(model))
    count = 0
    for owner, name, front, behind in found:
        (linear, start) = front if where == "output" else behind
        if not isinstance(linear, SVDQuantLinear):
            continue
        if where == "output" and linear.quantized:
            linear.gelu_out_from = start
        elif where == "input" and linear.can_apply_gelu(start):
            linear.gelu_from = start
        else:
            continue
        setattr(owner, name, FoldedGELU())
        count += 1
    return count


def _gelus(model: nn.Module) -> Iterator[tuple[nn.Module, str, tuple[Any, int], tuple[Any, int]]]:
    """(what holds the GELU, its name there, the layer in front and behind, each with the first column it is for)."""
    module: Any  # its attributes are the host's
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            names = list(module._modules)
            candidates = [(b, (a, 0), (c, 0)) for a, b, c in zip(names, names[1:], names[2:], strict=False)]
        elif hasattr(module, "mlp_act") and hasattr(module, "linear2"):  # FLUX: attention's share stands in front
            size = module.mlp_hidden_dim
            front, behind = module.linear1.out_features - size, module.linear2.in_features - size
            candidates = [("mlp_act", ("linear1", front), ("linear2", behind))]
        elif hasattr(module, "fc2") and isinstance(getattr(module, "norm", None), nn.Identity):  # PixArt, from timm
            candidates = [("act", ("fc1", 0), ("fc2", 0))]
        else:
            continue
        for name, *neighbours in candidates:
            gelu = getattr(module, name)
            if type(gelu) is nn.GELU and gelu.approximate == "tanh":
                front, behind = ((getattr(module, layer), start) for layer, start in neighbours)
                yield module, name, front, behind
