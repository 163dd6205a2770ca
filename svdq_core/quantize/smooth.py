"""Step 1: the smoothing factor, which moves difficulty between activations and weights.

    x @ W.T = (x / smooth) @ (W * smooth).T,    smooth = span_x ** alpha / span_w ** beta

Each candidate is scored by the output error of the layer that it leads to: low-rank branch, 4-bit residual, quantized
activations. A few coarse candidates come first, then steps in alpha and beta from the best one. Sources: SmoothQuant,
arXiv:2211.10438; two exponents and the scoring: SVDQuant, arXiv:2411.05007.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .statistics import InputStatistics

MAX_FACTOR = 256.0  # keeps W * smooth and proj_down / smooth within float16
# An NVFP4 activation scale is a bare e4m3 number: groups below 0.1 lose precision and above 2688 they clip.
NVFP4_RMS = 4.0

STEPS = (0.15, 0.05)  # of alpha and beta around the best so far
MAX_MOVES = 3  # for each step size


class Exponents(NamedTuple):
    """A candidate: which spans, and their exponents."""

    kind: str
    alpha: float
    beta: float

    def __str__(self) -> str:
        if self.alpha == 0 and self.beta == 0:
            return "none"
        return f"{self.kind} x^{self.alpha:.2f} w^{-self.beta:.2f}"


# Spans of the activations: root mean square beat the absolute maximum on 25 of 25 parts of a trained FLUX, by 10 % of
# the error on average, since one extreme token sets the maximum; it stays in for inputs of another kind.
MEASURED = (
    Exponents("rms", 0.0, 0.0),
    *(Exponents("rms", alpha, beta) for alpha in (0.35, 0.65, 0.95) for beta in (0.0, 0.35)),
    *(Exponents("absmax", alpha, 0.0) for alpha in (0.4, 0.8)),
)
ASSUMED = (
    Exponents("rms", 0.0, 0.0),
    *(Exponents(kind, 0.0, beta) for kind in ("rms", "absmax") for beta in (0.25, 0.5, 0.75)),
)


def normalize_factor(factor: Tensor, dtype: torch.dtype, level: float = 1.0) -> Tensor:
    """A usable smoothing factor: (K,) -> (K,) float32 whose values `dtype` holds exactly.

    Geometric mean 1 over the live channels, clamped to 2^-8...2^8, times `level`; dead channels get 1.

    Args:
        factor: zero, infinite or NaN where a channel is dead.
        level: a power of two.
    """
    live = (factor > 0) & torch.isfinite(factor)
    logs = torch.where(live, factor, torch.ones_like(factor)).log()
    logs = torch.where(live, logs - logs.sum() / live.sum().clamp(min=1), torch.zeros_like(logs))
    bound = math.log(MAX_FACTOR)
    factor = (logs.clamp(-bound, bound).exp() * level).clamp(1 / MAX_FACTOR, MAX_FACTOR)
    return torch.where(live, factor, torch.ones_like(factor)).to(dtype).float()


def activation_level(statistics: InputStatistics, precision: str) -> float:
    """The power of two that brings x / level near the RMS that the activation format likes."""
    live = statistics.mean_square[statistics.mean_square > 0]
    if precision != "nvfp4" or live.numel() == 0:
        return 1.0
    return 2.0 ** round(float(live.log2().mean()) / 2 - math.log2(NVFP4_RMS))


class FactorFamily:
    """All smoothing factors that the spans of one input and its weight give.

    Args:
        weight: (N, K) float32, all rows that share the input.
        statistics: of the input; if not measured, only the weight speaks.
        dtype: that the factor is stored in.
        level: from activation_level.
    """

    def __init__(self, weight: Tensor, statistics: InputStatistics, dtype: torch.dtype, level: float = 1.0):
        self.weight_spans = {"rms": weight.square().mean(dim=0).sqrt_(), "absmax": weight.abs().amax(dim=0)}
        self.act_spans = {"rms": statistics.mean_square.sqrt(), "absmax": statistics.absmax}
        self.measured, self.dtype, self.level = statistics.measured, dtype, level

    def factor(self, exponents: Exponents) -> Tensor:
        """(K,) float32, normalized."""
        kind, alpha, beta = exponents
        # A channel without input or without weight is dead, also where its exponent is 0.
        weight_span, act_span = self.weight_spans[kind], self.act_spans[kind]
        factor = act_span**alpha / weight_span**beta
        factor = torch.where((weight_span > 0) & (act_span > 0), factor, torch.zeros_like(factor))
        return normalize_factor(factor, self.dtype, self.level)

    def search(
        self, score: Callable[[list[Tensor]], list[float]], candidates: tuple[Exponents, ...] | None = None
    ) -> tuple[Tensor, str]:
        """The factor with the lowest score and its exponents in words.

        Args:
            score: output errors for some factors.
            candidates: the only ones to try; None: coarse ones, then steps from the best.
        """
        seen: dict[Exponents, float] = {}

        def best_of(proposals) -> Exponents:
            new = [exponents for exponents in dict.fromkeys(proposals) if exponents not in seen]
            errors = score([self.factor(exponents) for exponents in new]) if new else []
            seen.update((e, error if math.isfinite(error) else math.inf) for e, error in zip(new, errors, strict=True))
            return min(seen, key=seen.__getitem__)

        best = best_of(candidates or (MEASURED if self.measured else ASSUMED))
        if candidates is None:
            for step in STEPS:
                for _ in range(MAX_MOVES):
                    previous, best = best, best_of(self._neighbours(best, step))
                    if best == previous:
                        break
        return self.factor(best), str(best)

    def _neighbours(self, center: Exponents, step: float) -> list[Exponents]:
        kind, alpha, beta = center
        moves = [(0.0, step), (0.0, -step)] + ([(step, 0.0), (-step, 0.0)] if self.measured else [])
        return [Exponents(kind, round(alpha + a, 2), round(beta + b, 2)) for a, b in moves]
