"""One rectangle of weight to be approximated, and how far an approximation is off."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ...kernels.reference import requantize_int8
from .grid import Grid, activation_grid, weight_grid
from .low_rank import draw_test_matrix, exact_svd, truncated_svd
from .round import fit_scales, round_to_units, units_to_values
from .smooth import smoothed_activations
from .spec import QuantSpec
from .statistics import InputStatistics, named_generator

SEARCH_POWER_STEPS = 2


@dataclass(frozen=True)
class Problem:
    """A part before quantization.

    Args:
        weight: (N, K) float32.
        statistics: of its input, on the weight's device.
        shift: added to the input by the runtime before quantization; 0 for signed activations.
        spec: the user's settings.
        name: of layer and part, for messages and for the random numbers of the decomposition.
    """

    weight: Tensor
    statistics: InputStatistics
    shift: float
    spec: QuantSpec
    name: str

    @cached_property
    def grid(self) -> Grid:
        return weight_grid(self.spec.precision)

    @cached_property
    def target(self) -> Tensor:
        """The exact output of the sample: (T, N) float32."""
        return self.statistics.tokens @ self.weight.T

    @cached_property
    def _test_matrix(self) -> Tensor:
        generator = named_generator(self.spec.seed, self.name)
        return draw_test_matrix(self.weight.shape[1], self.spec.rank, generator, self.weight.device)

    def decompose(self, matrix: Tensor, power_steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Low-rank factors of an (N, K) matrix: up (N, R), down (R, K) float32."""
        if self.spec.exact_svd and power_steps is None:
            return exact_svd(matrix, self.spec.rank)
        steps = {} if power_steps is None else {"power_steps": power_steps}
        return truncated_svd(matrix, self.spec.rank, self._test_matrix, **steps)

    def squared_error(self, values: Tensor, smooth: Tensor, proj_down: Tensor, proj_up: Tensor) -> float:
        """Squared output error on the sample, activations quantized as the runtime does.

        Args:
            values: (N, K) float32 dequantized residual in smoothed coordinates.
            smooth: (K,), proj_down: (K, R) for raw x, proj_up: (N, R).
        """
        spec, tokens = self.spec, self.statistics.tokens
        grid = activation_grid(spec.precision, spec.activations, self.shift != 0)
        if spec.activations == "w4a8":
            codes, channel_scales = requantize_int8(values)
            values = codes.float() * channel_scales[:, None]
        out = smoothed_activations(tokens, smooth, grid, self.shift, spec.scale_dtype) @ values.T
        out += (tokens @ proj_down.float()) @ proj_up.float().T
        return float(out.sub_(self.target).square_().sum())

    def score_factor(self, smooth: Tensor) -> float:
        """squared_error of a quick attempt with this smoothing factor."""
        smoothed = self.weight * smooth
        up, down = self.decompose(smoothed, SEARCH_POWER_STEPS)
        residual = smoothed.sub_(up @ down)
        scales = fit_scales(residual, self.grid, self.spec.scale_dtype, sweep=False)
        values = units_to_values(round_to_units(residual, scales, self.grid), scales, self.grid)
        return self.squared_error(values, smooth, (down / smooth).T, up)

    def relative_error(self, values: Tensor, smooth: Tensor, proj_down: Tensor, proj_up: Tensor) -> float:
        """||y_quantized - y|| / ||y|| on the sample; arguments as squared_error. 0 where y is all zero."""
        norm = float(self.target.square().sum())
        return (self.squared_error(values, smooth, proj_down, proj_up) / norm) ** 0.5 if norm > 0 else 0.0
