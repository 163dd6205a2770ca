"""Whether a bias holds the shift of unsigned activations: what a file does not say, its numbers do.

Where activations behind a GELU are unsigned in an INT4 file, its bias is less by the shift times the sum of each row of
the residual weight. Against those sums, the bias of such a layer falls by the shift, and that of a signed one not at
all. Read as the other kind, a layer makes plausible and wrong pictures.
"""

import math

from torch import Tensor

from ...kernels.format import GELU_SHIFT
from ...kernels.part_weights import dequantize, rows_of
from ..errors import CheckpointError
from ..layer import Part

CERTAIN = 10  # standard errors
MOST_ROWS = 256  # that are looked at: a file has up to a hundred such layers


def bias_says(part: Part, bias: Tensor | None) -> bool | None:
    """Whether the bias of an int4 layer says that its activations are unsigned; None where it leaves doubt."""
    fit = _fit(part, bias)
    if fit is None:
        return None
    slope, doubt = fit
    for value, said in ((GELU_SHIFT, True), (0.0, False)):
        other = GELU_SHIFT - value
        if abs(slope - other) > CERTAIN * doubt and abs(slope - value) < abs(slope - other) / 2:
            return said
    return None


def check_shift(part: Part, bias: Tensor | None, where: str) -> None:
    """Raise CheckpointError where an int4 layer is read as signed and its bias says unsigned, or the other way.

    Nothing is said where the numbers leave doubt.
    """
    found = bias_says(part, bias)
    if found is None or found == part.act_unsigned:
        return
    fit = _fit(part, bias)
    assert fit is not None  # or the bias had said nothing
    said, other = ("unsigned", "signed") if part.act_unsigned else ("signed", "unsigned")
    raise CheckpointError(
        f"{where}: the file's names say that its activations are {said}, and its bias says {other}: it falls by "
        f"{fit[0]:.3f} of its weights' sums, expected {GELU_SHIFT if part.act_unsigned else 0.0:.3f}. It would draw "
        "wrong pictures; take a file of another publisher, and report this one."
    )


def _fit(part: Part, bias: Tensor | None) -> tuple[float, float] | None:
    """By how much of the sums of its weights a bias falls, and the standard error of that; None: nothing to fit."""
    if part.scheme != "int4" or bias is None or part.out_features < 64:
        return None
    rows = slice(0, MOST_ROWS)
    weight = dequantize(rows_of(part.tensors, part.scheme, rows), part.scheme)
    sums = (weight / part["smooth_factor"].float()).sum(dim=1)
    sums, values = sums - sums.mean(), bias[rows].float() - bias[rows].float().mean()
    spread = float(sums.square().sum())
    if spread == 0:
        return None
    slope = float(-(sums * values).sum()) / spread
    rest = values + slope * sums
    return slope, math.sqrt(float(rest.square().sum()) / (len(values) - 2) / spread)
