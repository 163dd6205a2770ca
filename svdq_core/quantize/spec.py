"""What the user asks of the quantizer, validated once."""

from dataclasses import dataclass

import torch

from ...kernels.format import RANK_MULTIPLE
from ..errors import SVDQuantError

PRECISIONS = ("int4", "nvfp4", "int8")
ACTIVATIONS = ("w4a4", "w4a8")
METHODS = ("fast", "best")
REFINE = "refine"  # best, then training: refine.py
PRESETS = (*METHODS, REFINE)  # what users choose from
SCALE_DTYPES = (torch.bfloat16, torch.float16)
MAX_RANK = 256


@dataclass(frozen=True)
class QuantSpec:
    """Settings of one quantization run.

    Args:
        precision: number format of the weights: "int4" (groups of 64), "nvfp4" (E2M1, groups of 16) or "int8" (one
            scale for each output channel, always run as w8a8).
        activations: the compute mode that the smoothing is chosen for; files run in every mode.
        rank: of the low-rank branch, 0...256 in steps of 16; layers too small for it get less.
        method: "fast" needs weights only and gets better with statistics; "best" needs statistics of the inputs.
        seed: of the synthetic tokens and of the randomized SVD. Same seed, same machine: same bytes.
        scale_dtype: of smooth_factor, wscales, proj_down, proj_up and the bias.
        score_tokens: tokens that each smoothing candidate is scored on, more are strided down to it.
        exact_svd: full decomposition in float64 instead of the randomized one; slow.

    Raises:
        SVDQuantError: a value is outside what is named here.
    """

    precision: str = "int4"
    activations: str = "w4a8"
    rank: int = 32
    method: str = "fast"
    seed: int = 0
    scale_dtype: torch.dtype = torch.bfloat16
    score_tokens: int = 512
    exact_svd: bool = False

    def __post_init__(self):
        for name, value, allowed in (
            ("precision", self.precision, PRECISIONS),
            ("activations", self.activations, ACTIVATIONS),
            ("method", self.method, METHODS),
            ("scale_dtype", self.scale_dtype, SCALE_DTYPES),
        ):
            if value not in allowed:
                expected = " or ".join(str(a).removeprefix("torch.") for a in allowed)
                raise SVDQuantError(f"{name} {value!r} is not known. Choose {expected}.")
        if not 0 <= self.rank <= MAX_RANK or self.rank % RANK_MULTIPLE:
            raise SVDQuantError(
                f"rank {self.rank}: expected 0 to {MAX_RANK} in steps of {RANK_MULTIPLE}. 32 is the paper's choice."
            )
        if self.score_tokens < 1:
            raise SVDQuantError(f"score_tokens {self.score_tokens}: expected at least 1.")
