"""Step 1: the smoothing factor, which moves difficulty between activations and weights.

    x @ W.T = (x / smooth) @ (W * smooth).T

Each candidate is scored by the output error of the layer that it leads to: low-rank branch, 4-bit residual, quantized
activations. Sources: SmoothQuant, arXiv:2211.10438; the grid over two exponents: SVDQuant, arXiv:2411.05007.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .grid import Grid, quantize_activations
from .statistics import InputStatistics

MAX_FACTOR = 256.0  # keeps W * smooth and proj_down / smooth within float16
# An NVFP4 activation scale is a bare e4m3 number: groups below 0.1 lose precision and above 2688 they clip.
NVFP4_RMS = 4.0


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
    if precision != "nvfp4":
        return 1.0
    live = statistics.mean_square[statistics.mean_square > 0]
    if live.numel() == 0:
        return 1.0
    return 2.0 ** round(float(live.log2().mean()) / 2 - math.log2(NVFP4_RMS))


def propose_factors(weight: Tensor, statistics: InputStatistics) -> Iterator[tuple[str, Tensor]]:
    """Candidates before normalization, each with a label for the report: (K,) float32.

    Without measured activations only the columns of the weight speak: span ** -beta. With them: span_x ** alpha and
    span_x ** alpha / span_w ** (1 - alpha). Spans: root mean square and absolute maximum.
    """
    weight_spans = {"rms": weight.square().mean(dim=0).sqrt_(), "absmax": weight.abs().amax(dim=0)}
    yield "none", torch.ones_like(weight_spans["rms"])
    if not statistics.measured:
        for kind, span in weight_spans.items():
            for beta in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
                yield f"{kind} w^-{beta}", span**-beta
        return
    act_spans = {"rms": statistics.mean_square.sqrt(), "absmax": statistics.absmax}
    for kind, span in act_spans.items():
        for step in range(1, 20):
            alpha = step / 20
            yield f"{kind} x^{alpha:.2f}", span**alpha
            yield f"{kind} x^{alpha:.2f} w^-{1 - alpha:.2f}", span**alpha / weight_spans[kind] ** (1 - alpha)


def smoothed_activations(tokens: Tensor, smooth: Tensor, grid: Grid, shift: float, dtype: torch.dtype) -> Tensor:
    """What the residual weight is multiplied by, the shift taken out again: (T, K) -> (T, K) float32.

    The runtime multiplies quant((x + shift) / smooth) and its bias holds -shift / smooth times the weight; together
    they act as quant((x + shift) / smooth) - shift / smooth.
    """
    x_hat = ((tokens + shift) / smooth).to(dtype).float()
    x_hat = quantize_activations(x_hat, grid, dtype)
    return x_hat - shift / smooth if shift else x_hat


def choose_factor(
    weight: Tensor,
    statistics: InputStatistics,
    level: float,
    dtype: torch.dtype,
    score: Callable[[Tensor], float],
) -> tuple[Tensor, str]:
    """The candidate with the lowest score: (K,) float32, exact in `dtype`, and its label.

    Args:
        weight: (N, K) float32.
        level: from activation_level.
        score: output error for a factor.
    """
    best_factor, best_label, best_score = torch.ones_like(weight[0]), "none", math.inf
    for label, factor in propose_factors(weight, statistics):
        factor = normalize_factor(factor, dtype, level)
        error = score(factor)
        if error < best_score:
            best_factor, best_label, best_score = factor, label, error
    return best_factor, best_label
