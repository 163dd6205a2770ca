"""W4A16: layers of which the weight alone is quantized, each group of inputs with a scale and a zero point.

Modulation layers are rounded to the least error of the weight. Layers of text encoders may be rounded to what their
inputs make of the error: by GPTQ or with the columns weighed, whichever is better on rows that neither has seen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.format import GROUP_SIZE_AWQ, UINT4_MAX
from ...kernels.packing import pack_nibbles
from ..layer import Part
from .gptq import FactoredHessian, round_gptq
from .grid import Grid
from .part_plan import PartPlan
from .round import GroupScales, round_awq
from .statistics import InputStatistics

WIDEST_HESSIAN = 20480  # inputs; GPTQ takes four matrices of that size squared, 6.7 GB
# of the mean diagonal of a Hessian, tried in this order; few prompts say little about correlations
DAMPINGS = (0.1, 1.0)


@dataclass(frozen=True)
class W4A16Fit:
    """A weight as codes, scales and zero points.

    Args:
        codes: (N, K) uint8 0...15. scales, zeros: (N, K // group) in 16 bits. rounding: "nearest" or "gptq".
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    rounding: str = "nearest"

    @property
    def values(self) -> Tensor:
        """(N, K) float32: what the codes stand for."""
        groups = self.codes.float().unflatten(-1, (self.scales.shape[1], -1))
        return torch.addcmul(self.zeros.float()[..., None], groups, self.scales.float()[..., None]).flatten(-2)

    def part(self, plan: PartPlan) -> Part:
        """As the runtime has it: groups of 128 are two of 64 with one scale."""
        groups = self.codes.shape[1] // GROUP_SIZE_AWQ
        repeats = groups // self.scales.shape[1]
        scales, zeros = (t.T.repeat_interleave(repeats, dim=0).contiguous() for t in (self.scales, self.zeros))
        tensors = {"qweight": pack_nibbles(self.codes), "wscales": scales, "wzeros": zeros}
        return Part("awq", plan.rows, plan.columns, False, tensors)


def fit_w4a16(weight: Tensor, group: int, dtype: torch.dtype, statistics: InputStatistics | None = None) -> W4A16Fit:
    """Round a weight.

    Args:
        weight: (N, K) float32. group: inputs that share a scale; a multiple of 64 that divides K.
        dtype: of scales and zero points.
        statistics: of its inputs: second moments, and rows that are not among them; None: every input counts alike.
    """
    plain = W4A16Fit(*round_awq(weight, dtype, group))
    if statistics is None:
        return plain
    importance = statistics.mean_square
    importance = importance.clamp(min=float(importance.mean()) * 1e-3)  # dead inputs: not by chance of few prompts
    weighed = W4A16Fit(*round_awq(weight, dtype, group, importance))
    candidates = [plain, weighed]
    if weight.shape[1] <= WIDEST_HESSIAN:
        hessian, _ = statistics.hessian()
        for damping in DAMPINGS:
            factored = FactoredHessian.factor(hessian, damping)
            if factored is not None:
                candidates.append(_along(factored, weight, weighed, group))
    return min(candidates, key=lambda fit: output_error(fit, weight, statistics))


def _along(hessian: FactoredHessian, weight: Tensor, fit: W4A16Fit, group: int) -> W4A16Fit:
    """The same scales, codes by GPTQ."""
    grid = Grid("int", 0, UINT4_MAX, group)
    shifted = (weight.unflatten(-1, (-1, group)) - fit.zeros.float()[..., None]).flatten(-2)
    units = round_gptq(shifted, GroupScales(fit.scales), grid, hessian)
    return W4A16Fit(units.to(torch.uint8), fit.scales, fit.zeros, "gptq")


def output_error(fit: W4A16Fit, weight: Tensor, statistics: InputStatistics) -> float:
    """||y_quantized - y|| / ||y|| on the rows at hand."""
    rows = statistics.tokens.float()
    exact = rows @ weight.T
    return float((rows @ fit.values.T - exact).norm() / exact.norm().clamp(min=1e-30))


def weight_error(fit: W4A16Fit, weight: Tensor) -> float:
    """||w_quantized - w|| / ||w||."""
    return float((fit.values - weight).norm() / weight.norm().clamp(min=1e-30))
