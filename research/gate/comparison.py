"""How much a recipe changes, and whether that is more than luck: over captions, and over replicates.

A difference is paired twice: by caption (the same words and noise), and by replicate (the same seeds and recording).
"""

import math
from dataclasses import dataclass

from torch import Tensor

from ..evaluate.intervals import Estimate, estimate

# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom; beyond, those of a normal distribution are near.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
NORMAL = 1.96
BETTER, WORSE, UNCLEAR, UNKNOWN = "better", "worse", "no clear difference", "one replicate: no verdict"


@dataclass(frozen=True)
class Spread:
    """A mean over replicates of a mean over captions.

    Args:
        mean: of all. captions: half the 95 % interval over captions, by bootstrap of means over replicates.
        deviation: standard deviation of the replicates' means; NaN for one replicate.
        replicates: how many.
    """

    mean: float
    captions: float
    deviation: float
    replicates: int

    @property
    def half_width(self) -> float:
        """Half of a 95 % interval that holds both: captions and replicates are drawn independently."""
        return math.hypot(self.captions, _student(self.replicates) * self.deviation / math.sqrt(self.replicates))

    @property
    def verdict(self) -> str:
        """Of a difference of errors, in words."""
        if self.replicates < 2:
            return UNKNOWN
        if abs(self.mean) <= self.half_width:
            return UNCLEAR
        return BETTER if self.mean < 0 else WORSE


def _student(count: int) -> float:
    return math.nan if count < 2 else STUDENT[count - 2] if count - 2 < len(STUDENT) else NORMAL


def spread(values: Tensor) -> Spread:
    """Of figures (replicates, captions)."""
    over_captions = estimate(values.mean(dim=0))
    assert isinstance(over_captions, Estimate)
    means = values.double().mean(dim=1)
    deviation = float(means.std()) if len(means) > 1 else math.nan
    return Spread(over_captions.mean, over_captions.half_width, deviation, len(means))


def change(errors: Tensor, others: Tensor) -> Spread:
    """How much lower or higher errors are than others, as a share of the others' mean: (replicates, captions) each."""
    return spread((errors - others).double() / float(others.double().mean()))
