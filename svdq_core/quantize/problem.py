"""One rectangle of weight to be approximated, and how far an approximation is off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...kernels.format import INT8_MAX
from .coarse_products import coarse_products
from .grid import Arithmetic, quantize_activations
from .low_rank import COLD_STEPS, WARM_STEPS, Rotated, draw_test_matrix, exact_svd, truncated_svd
from .round import ROWS, round_by_absmax
from .statistics import InputStatistics, named_generator

SCORE_STEPS = 1  # of the decomposition that a smoothing factor is scored with
SCORE_ELEMENTS = 1 << 26  # of the weights that are scored at once
SCORE_ROWS = 3072  # of a weight; a quarter of the outputs of FLUX's largest layers tells the same about smoothing


@dataclass(frozen=True)
class Problem:
    """A part before quantization.

    Args:
        weight: (N, K) float32.
        statistics: of its input, on the weight's device.
        arithmetic: what the runtime does with it.
        shift: added to the input by the runtime before quantization; 0 for signed activations.
        rank: of the low-rank branch.
        scale_dtype: of everything stored in 16 bits.
        seed, name: what the random numbers of the decomposition depend on; the name is for messages, too.
        score_tokens: how many tokens errors are measured on.
        exact_svd: full decomposition.
        poll: called before each measurement; what it raises ends the run.
    """

    weight: Tensor
    statistics: InputStatistics
    arithmetic: Arithmetic
    shift: float = 0.0
    rank: int = 32
    scale_dtype: torch.dtype = torch.bfloat16
    seed: int = 0
    name: str = "layer"
    score_tokens: int = 512
    exact_svd: bool = False
    poll: Callable[[], None] = lambda: None

    @cached_property
    def tokens(self) -> Tensor:
        """The sample that errors are measured on: (T, K) float32."""
        return self.statistics.sample(self.score_tokens)

    @cached_property
    def target(self) -> Tensor:
        """The exact output of the sample: (T, N) float32."""
        return self.tokens @ self.weight.T

    @cached_property
    def _test_matrix(self) -> Tensor:
        generator = named_generator(self.seed, self.name)
        return draw_test_matrix(self.weight.shape[1], self.rank, generator, self.weight.device)

    def decompose(self, matrix: Tensor | Rotated, guess: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Low-rank factors of an (N, K) matrix: up (N, R), down (R, K) float32.

        Args:
            guess: (R, K) what `down` will be near to, if that is known.
        """
        if self.exact_svd:
            return exact_svd(matrix.made() if isinstance(matrix, Rotated) else matrix, self.rank)
        if guess is None:
            return truncated_svd(matrix, self.rank, self._test_matrix, COLD_STEPS)
        return truncated_svd(matrix, self.rank, guess.T, WARM_STEPS)

    def quantized_input(self, smooth: Tensor) -> Tensor:
        """What the residual weight is multiplied by, the shift taken out again: (T, K) float32, or one for each factor.

        The runtime multiplies quant((x + shift) / smooth) and its bias holds -shift / smooth times the weight. Together
        they act as quant((x + shift) / smooth) - shift / smooth.
        """
        x_hat = ((self.tokens + self.shift) / smooth).to(self.scale_dtype).float()
        if self.arithmetic.activations is not None:
            x_hat = quantize_activations(x_hat, self.arithmetic.activations, self.scale_dtype)
        return x_hat - self.shift / smooth if self.shift else x_hat

    def squared_error(self, values: Tensor, smooth: Tensor, proj_down: Tensor, proj_up: Tensor) -> float:
        """Squared output error on the sample, activations quantized as the runtime does.

        Args:
            values: (N, K) float32 dequantized residual in smoothed coordinates.
            smooth: (K,), proj_down: (K, R) for raw x, proj_up: (N, R).
        """
        self.poll()
        x_hat, projected = self.quantized_input(smooth), self.tokens @ proj_down.float()
        errors = []
        for rows, up, target in zip(values.split(ROWS), proj_up.split(ROWS), self.target.split(ROWS, 1), strict=True):
            if self.arithmetic.requantize:
                rows = _round_to_int8(rows.clone())
            out = x_hat @ rows.T
            out += projected @ up.float().T
            errors.append(out.sub_(target).square_().sum())
        return float(sum(errors))

    def relative_error(self, values: Tensor, smooth: Tensor, proj_down: Tensor, proj_up: Tensor) -> float:
        """||y_quantized - y|| / ||y|| on the sample; arguments as squared_error. 0 where y is all zero."""
        norm = float(self.target.square().sum())
        return (self.squared_error(values, smooth, proj_down, proj_up) / norm) ** 0.5 if norm > 0 else 0.0

    def score_factors(self, factors: Sequence[Tensor]) -> list[float]:
        """squared_error of a quick attempt with each of some smoothing factors (K,), at the rows of `thinned`.

        Several are tried at once where the weight is small: launching the kernels would take longer than they do.
        Held-out errors with factors chosen by a decomposition as accurate as `decompose` differ by up to 0.7 %, in
        either direction (three synthetic layers, two seeds, W4A4 and W4A8).
        """
        problem, errors = self.thinned, []
        assert len(problem.target), "made here, in float32"
        count = max(1, SCORE_ELEMENTS // problem.weight.numel())
        if self.arithmetic.weights.kind == "e2m1" or not _is_launched(self.weight.device):
            count = 1  # e2m1 has a factor for all scales of a weight
        for start in range(0, len(factors), count):
            self.poll()
            with coarse_products(self.weight.device):
                errors.append(problem._score(torch.stack(list(factors[start : start + count])), self._test_matrix))
        return torch.cat(errors).tolist() if errors else []

    def _score(self, factors: Tensor, start: Tensor) -> Tensor:
        """(B,) squared errors for (B, K) factors."""
        grid, columns = self.arithmetic.weights, self.weight.shape[1]
        smoothed = self.weight * factors[:, None]
        up, down = truncated_svd(smoothed, self.rank, start, SCORE_STEPS)
        residual = smoothed.baddbmm_(up, down, alpha=-1)
        values = round_by_absmax(residual.view(-1, columns), grid, self.scale_dtype).view_as(residual)
        if self.arithmetic.requantize:
            _round_to_int8(values)
        out = torch.baddbmm(-self.target, self.tokens @ (down / factors[:, None]).mT, up.mT)
        return out.baddbmm_(self.quantized_input(factors[:, None]), values.mT).square_().sum(dim=(1, 2))

    @property
    def thinned(self) -> "Problem":
        """The same with at most SCORE_ROWS of the weight's rows, evenly strided."""
        # A problem that held itself would keep its memory until the garbage collector comes by.
        return self if len(self.weight) <= SCORE_ROWS else self._thinned

    @cached_property
    def _thinned(self) -> "Problem":
        step = -(-len(self.weight) // SCORE_ROWS)
        return replace(self, weight=self.weight[::step].contiguous())


def _is_launched(device: torch.device) -> bool:
    """Whether what a device does has to be sent to it first."""
    return device.type != "cpu"


def _round_to_int8(weight: Tensor) -> Tensor:
    """What kernels.reference.requantize_int8 makes of (..., N, K) float32, as numbers; in its place."""
    scales = weight.abs().amax(dim=-1, keepdim=True) * (1.0 / INT8_MAX)
    reciprocal = torch.where(scales > 0, 1.0 / scales, torch.zeros_like(scales))
    return weight.mul_(reciprocal).round_().clamp_(-INT8_MAX, INT8_MAX).mul_(scales)
