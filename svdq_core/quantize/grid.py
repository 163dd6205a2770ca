"""The numbers that codes can stand for, and the nearest one to a value.

A value is unit * scale, with one scale for `group_size` consecutive columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.format import (
    E2M1_MAX,
    E4M3_MAX,
    GROUP_SIZE_INT4,
    GROUP_SIZE_NVFP4,
    INT4_MAX,
    INT8_MAX,
    UINT4_MAX,
)


@dataclass(frozen=True)
class Grid:
    """A set of units and how many columns share a scale.

    Args:
        kind: "int" (whole numbers) or "e2m1".
        low, high: smallest and largest unit.
        group_size: columns that share a scale; None: all of them.
    """

    kind: str
    low: float
    high: float
    group_size: int | None

    def snap(self, units: Tensor) -> Tensor:
        """The nearest unit, ties to even, saturating: float32 (...) -> float32 (...)."""
        units = units.clamp(self.low, self.high)
        if self.kind == "int":
            return units.round_()
        magnitude = units.abs()
        inverse_step = torch.where(magnitude < 2, 2.0, torch.where(magnitude < 4, 1.0, 0.5))
        return units.mul_(inverse_step).round_().div_(inverse_step)

    def groups(self, values: Tensor) -> Tensor:
        """(M, K) as (M, G, group_size), a view."""
        return values.unflatten(-1, (-1, self.group_size or values.shape[-1]))


INT4 = Grid("int", -INT4_MAX, INT4_MAX, GROUP_SIZE_INT4)
UINT4 = Grid("int", 0, UINT4_MAX, GROUP_SIZE_INT4)
INT8_TOKEN = Grid("int", -INT8_MAX, INT8_MAX, None)
NVFP4 = Grid("e2m1", -E2M1_MAX, E2M1_MAX, GROUP_SIZE_NVFP4)


def weight_grid(precision: str) -> Grid:
    """The grid of the weights' codes in a file."""
    return {"int4": INT4, "nvfp4": NVFP4}[precision]


def activation_grid(precision: str, activations: str, act_unsigned: bool) -> Grid:
    """The grid that the runtime quantizes activations to."""
    if activations == "w4a8":
        return INT8_TOKEN
    if precision == "nvfp4":
        return NVFP4
    return UINT4 if act_unsigned else INT4


def quantize_activations(x_hat: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """Smoothed activations after quantization and back: (M, K) -> (M, K) float32.

    As the runtime: codes from the unrounded absmax scale, group scales then rounded to `dtype` (int) or e4m3 (e2m1);
    scales for whole tokens stay float32.
    """
    groups = grid.groups(x_hat)
    scales = groups.abs().amax(dim=-1, keepdim=True) * (1.0 / grid.high)
    if grid.kind == "e2m1":
        scales = scales.clamp(max=E4M3_MAX)
    units = grid.snap(groups * torch.where(scales > 0, 1.0 / scales, 0.0))
    if grid.kind == "e2m1":
        scales = scales.to(torch.float8_e4m3fn).float()
    elif grid.group_size is not None:
        scales = scales.to(dtype).float()
    return units.mul_(scales).flatten(-2)
