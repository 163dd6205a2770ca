"""Whether a bias holds the shift of unsigned activations: what a file does not say, its numbers do.

Where activations behind a GELU are unsigned in an INT4 file, its bias is less by the shift times the sum of each row of
the residual weight. Against those sums, the bias of such a layer falls by the shift, and that of a signed one not at
all. Read as the other kind, a layer makes plausible and wrong pictures.
"""

import math

from torch import Tensor

from ...kernels.format import GELU_SHIFT
from ...kernels.part_weights import dequantize
from ..errors import CheckpointError
from ..layer import Part

CERTAIN = 10  # standard errors


def check_shift(part: Part, bias: Tensor | None, where: str) -> None:
    """Raise CheckpointError where an int4 layer is read as signed and its bias says unsigned, or the other way.

    Nothing is said where the numbers leave doubt.
    """
    if part.scheme != "int4" or bias is None or part.out_features < 64:
        return
    sums = (dequantize(part.tensors, part.scheme) / part["smooth_factor"].float()).sum(dim=1)
    sums, values = sums - sums.mean(), bias.float() - bias.float().mean()
    spread = float(sums.square().sum())
    if spread == 0:
        return
    slope = float(-(sums * values).sum()) / spread
    rest = values + slope * sums
    doubt = math.sqrt(float(rest.square().sum()) / (len(values) - 2) / spread)
    expected, other = (GELU_SHIFT, 0.0) if part.act_unsigned else (0.0, GELU_SHIFT)
    if abs(slope - expected) > CERTAIN * doubt and abs(slope - other) < abs(slope - expected) / 2:
        said, found = ("unsigned", "signed") if part.act_unsigned else ("signed", "unsigned")
        raise CheckpointError(
            f"{where}: the file's names say that its activations are {said}, and its bias says {found}: it falls by "
            f"{slope:.3f} of its weights' sums, expected {expected:.3f}. It would draw wrong pictures; take a file of "
            "another publisher, and report this one."
        )
