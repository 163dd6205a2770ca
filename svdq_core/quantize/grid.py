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

# Quantiles of a normal distribution, both ends and zero exact: QLoRA, arXiv:2305.14314, appendix E.
NF4_VALUES = (
    *(-1.0, -0.6961928, -0.5250731, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)


@dataclass(frozen=True)
class Grid:
    """A set of units and how many columns share a scale.

    Args:
        kind: "int" (whole numbers), "e2m1" (scales are e4m3 numbers, with one factor for a whole weight) or "nf4".
        low, high: smallest and largest unit.
        group_size: columns that share a scale; None: all of them.
    """

    kind: str
    low: float
    high: float
    group_size: int | None

    @property
    def fits_bfloat16(self) -> bool:
        """Whether bfloat16 holds every unit exactly: whole numbers up to 256 and e2m1 numbers, not quantiles."""
        return self.kind != "nf4"

    def snap(self, units: Tensor) -> Tensor:
        """The nearest unit, ties to even, saturating: float32 (...) -> float32 (...)."""
        if self.kind == "nf4":
            values = torch.tensor(NF4_VALUES, device=units.device)
            return values[torch.bucketize(units, (values[1:] + values[:-1]) / 2)]
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
INT8 = Grid("int", -INT8_MAX, INT8_MAX, None)  # one scale for a token, or for an output channel
NVFP4 = Grid("e2m1", -E2M1_MAX, E2M1_MAX, GROUP_SIZE_NVFP4)
NF4 = Grid("nf4", -1.0, 1.0, GROUP_SIZE_INT4)


@dataclass(frozen=True)
class Arithmetic:
    """What the runtime multiplies.

    Args:
        weights: grid of the residual weight's codes.
        activations: grid of the activations; None: 16 bits.
        requantize: the weight is brought to one int8 scale for each output channel first.
    """

    weights: Grid
    activations: Grid | None
    requantize: bool = False


def runtime_arithmetic(precision: str, activations: str, act_unsigned: bool) -> Arithmetic:
    """What compute mode `activations` ("w4a4" or "w4a8") does with a file of this precision; int8 ones know w8a8."""
    if precision == "int8":
        return Arithmetic(INT8, INT8)
    weights = {"int4": INT4, "nvfp4": NVFP4}[precision]
    if activations == "w4a8":
        return Arithmetic(weights, INT8, requantize=True)
    return Arithmetic(weights, UINT4 if act_unsigned else weights)


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
