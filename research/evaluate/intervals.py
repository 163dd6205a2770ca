"""Means of paired figures and how sure they are: percentile bootstrap over captions."""

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES, LEVEL, SEED = 2000, 0.95, 0


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def estimate(values: Tensor) -> Estimate | None:
    """Mean of (B,) figures and its 95 % interval; NaN are left out, None if nothing is left.

    The same resamples for every figure of as many captions, so that differences are paired.
    """
    values = values[~values.isnan()].double()
    if not len(values):
        return None
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=torch.Generator().manual_seed(SEED))
    means = values[picks].mean(dim=1)
    low, high = means.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return Estimate(float(values.mean()), low, high, len(values))
