"""GELUs that the layer behind them applies itself, while it quantizes its input: one pass over the activations less.

Modules keep their names and their order. Where a GELU stood now stands one that passes its input on; the layer knows
from which column on a GELU is missing.
"""

import os
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from .linear import SVDQuantLinear

SWITCH = "SVDQUANT_FOLD_GELU"  # environment: 0 folds nowhere, 1 also where it is not known to be faster


class FoldedGELU(nn.Module):
    """Stands where a GELU stood; the next layer applies it."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def wants_folding(usual: bool) -> bool:
    """Whether to fold.

    Args:
        usual: what the kernels' table says about this GPU.
    """
    return {"0": False, "1": True}.get(os.environ.get(SWITCH, ""), usual)


def fold_gelus(model: nn.Module) -> int:
    """Hand every GELU in front of a quantized layer that can apply it to that layer; return how many."""
    found = list(_pairs(model))
    for owner, name, linear, start in found:
        setattr(owner, name, FoldedGELU())
        linear.gelu_from = start
    return len(found)


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, SVDQuantLinear, int]]:
    """(what holds the GELU, its name there, the layer behind it, the first column that it is for)."""
    module: Any  # its attributes are the host's
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            candidates = [(name, behind, 0) for name, behind in pairwise(module._modules)]
        elif hasattr(module, "mlp_act") and hasattr(module, "linear2"):  # FLUX: attention's output stands in front
            candidates = [("mlp_act", "linear2", module.linear2.in_features - module.mlp_hidden_dim)]
        elif hasattr(module, "fc2") and isinstance(getattr(module, "norm", None), nn.Identity):  # PixArt, from timm
            candidates = [("act", "fc2", 0)]
        else:
            continue
        for name, behind, start in candidates:
            gelu, linear = getattr(module, name), getattr(module, behind)
            is_gelu = type(gelu) is nn.GELU and gelu.approximate == "tanh"
            if is_gelu and isinstance(linear, SVDQuantLinear) and linear.can_apply_gelu(start):
                yield module, name, linear, start
