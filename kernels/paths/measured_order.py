"""Which path of a mode was measured to be the fastest for a layer's sizes on a GPU; it is then tried first.

Where nothing was measured, and on GPUs whose row of the table has a timing behind it, the order of layer_paths.PATHS
stands, and for a few tokens it always does: it was measured for many. What was measured for one size never changes in a
process: models loaded at different times compute alike.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..ladder import note_new_order
from ..layer_call import LayerCall
from ..stand_in import meant
from .path import Path

LEAST_TOKENS = 256  # from which on what was measured counts


class Sizes(NamedTuple):
    """What the time of a part's call depends on, beside its tokens and its mode.

    Args:
        K, N: inputs and outputs. R: rank of the low-rank branch without LoRAs, which no order depends on.
    """

    scheme: str
    K: int
    N: int
    R: int
    act_unsigned: bool

    def __str__(self) -> str:
        return f"{self.scheme} {self.K}>{self.N} r{self.R}{' unsigned' if self.act_unsigned else ''}"


def sizes_of(scheme: str, tensors: dict[str, Tensor], act_unsigned: bool) -> Sizes:
    """The sizes of a part with a low-rank branch."""
    (K, R), N = tensors["proj_down"].shape, tensors["proj_up"].shape[0]
    return Sizes(scheme, K, N, R, act_unsigned)


_first: dict[tuple, str] = {}  # (device's type and index, scheme, mode, K, N, act_unsigned) -> name of a path


def try_first(device: torch.device, sizes: Sizes, mode: str, name: str) -> None:
    """Have calls of a mode on a device try the path of a name first, unless another was named before."""
    key = device.type, device.index or 0, sizes.scheme, mode, sizes.K, sizes.N, sizes.act_unsigned
    if _first.setdefault(key, name) == name:
        note_new_order(key)


def measured_first(device: torch.device, sizes: Sizes, mode: str) -> str | None:
    """Name of the path that was measured to be the fastest, None where the table's order stands."""
    return _first.get((device.type, device.index or 0, sizes.scheme, mode, sizes.K, sizes.N, sizes.act_unsigned))


def in_measured_order(steps: list[tuple[str, Path]], call: LayerCall) -> list[tuple[str, Path]]:
    """Steps of a ladder with the path that was measured to be the fastest for the call's sizes in front."""
    (M, K), device = call.x.shape, meant(call.x.device)
    if not _first or M < LEAST_TOKENS:
        return steps
    place = device.type, device.index or 0
    name = _first.get((*place, call.scheme, call.mode, K, call.out_features, call.act_unsigned))
    if name is None or steps[0][1].name == name:
        return steps
    return sorted(steps, key=lambda step: step[1].name != name)  # stable: the others keep their order
