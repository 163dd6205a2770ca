"""Quantized Linears that run anywhere: dense weights of what the codes stand for, activations rounded on the way.

    out = round((x + shift) / smooth) @ values.T + x @ proj_down @ proj_up.T + bias

The same arithmetic for every method, in float32 with what a file stores rounded to 16 bits. RealLinear runs the same
layer through the pack's own kernels instead.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ...kernels.format import GELU_SHIFT
from ...kernels.part_weights import dequantize
from ...kernels.reference import requantize_int8
from ...svdq_core.apply_layer import apply_layer, dense_bias, dense_weight
from ...svdq_core.layer import QuantizedLayer, with_tensors
from ...svdq_core.quantize.fit import Fit
from ...svdq_core.quantize.grid import Arithmetic, Grid, quantize_activations, runtime_arithmetic
from ...svdq_core.quantize.problem import Problem
from ...svdq_core.runtime import with_derived

STORED = torch.bfloat16  # what smoothing factors, branches, scales and biases are rounded to
Range = tuple[int, int]


@dataclass(frozen=True)
class SimulatedPart:
    """A rectangle of a quantized weight.

    Args:
        rows, columns: where it lies.
        values: (N, K) float32 of the 4-bit weight, in smoothed coordinates.
        smooth: (K,). shift: added to the input; what it adds to the output is taken out of the layer's bias.
        activations: grid that the smoothed input is rounded to; None: 16 bits.
        proj_down, proj_up: (K, R) and (N, R) float32.
        see: what is done to the input before anything else.
        offset: (N,) added to the layer's bias; None: nothing.
        rounding: of the smoothed input (T, K) by this part; None: to `activations` as the runtime does.
    """

    rows: Range
    columns: Range
    values: Tensor
    smooth: Tensor
    shift: float
    activations: Grid | None
    proj_down: Tensor
    proj_up: Tensor
    see: Callable[[Tensor], Tensor] = Tensor.float
    offset: Tensor | None = None
    rounding: "Callable[[Tensor, SimulatedPart], Tensor] | None" = None

    @staticmethod
    def of_fit(fit: Fit, problem: Problem, rows: Range, columns: Range, see: Callable[[Tensor], Tensor]):
        """A baseline's result; `problem` as its method adapted it."""
        return SimulatedPart(
            rows,
            columns,
            _as_multiplied(fit.values, problem.arithmetic),
            fit.smooth,
            problem.shift,
            problem.arithmetic.activations,
            fit.proj_down.float(),
            fit.proj_up.float(),
            see,
        )

    def on(self, device: torch.device) -> "SimulatedPart":
        """The same on another device."""
        names = ("values", "smooth", "proj_down", "proj_up")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def folded_shift(self) -> Tensor:
        """What the shift adds to the outputs: (N,) float32."""
        return self.shift * (self.values / self.smooth).double().sum(dim=1).float()

    def apply(self, x: Tensor) -> Tensor:
        """(T, K of the layer) float32 -> (T, N of the part) float32."""
        seen = self.see(x[:, slice(*self.columns)])
        x_hat = ((seen + self.shift) / self.smooth).to(STORED).float()
        if self.rounding is not None:
            x_hat = self.rounding(x_hat, self)
        elif self.activations is not None:
            x_hat = quantize_activations(x_hat, self.activations, STORED)
        out = x_hat @ self.values.T
        if self.proj_down.shape[1]:
            out += (seen @ self.proj_down) @ self.proj_up.T
        return out


def _as_multiplied(values: Tensor, arithmetic: Arithmetic) -> Tensor:
    if not arithmetic.requantize:
        return values
    codes, channel_scales = requantize_int8(values)
    return codes.float() * channel_scales[:, None]


class SimulatedLinear(nn.Module):
    """Parts that tile one weight, and the bias with their shifts taken out, rounded as a file holds it."""

    def __init__(self, parts: list[SimulatedPart], bias: Tensor) -> None:
        super().__init__()
        self.parts = parts
        self.bias = bias.to(STORED).float()

    @staticmethod
    def of_parts(parts: list[SimulatedPart], bias: Tensor) -> "SimulatedLinear":
        """The unquantized layer's bias (N,) without the shifts of the parts, and with their offsets."""
        bias = bias.float().clone()
        for part in parts:
            if part.shift:
                bias[slice(*part.rows)] -= part.folded_shift()
            if part.offset is not None:
                bias[slice(*part.rows)] += part.offset
        return SimulatedLinear(parts, bias)

    @staticmethod
    def of_layer(layer: QuantizedLayer, precision: str, activations: str) -> "SimulatedLinear":
        """What the pack's layer computes in compute mode `activations`; its bias has the shifts taken out already."""
        parts = []
        for part in layer.parts:
            arithmetic = runtime_arithmetic(precision, activations, part.act_unsigned)
            smooth, down, up = (part.get(name) for name in ("smooth_factor", "proj_down", "proj_up"))
            values = dequantize(part.tensors, part.scheme)
            parts.append(
                SimulatedPart(
                    part.rows,
                    part.columns,
                    _as_multiplied(values, arithmetic),
                    torch.ones_like(values[0]) if smooth is None else smooth.float(),
                    GELU_SHIFT if part.act_unsigned else 0.0,
                    arithmetic.activations,
                    values.new_zeros(values.shape[1], 0) if down is None else down.float(),
                    values.new_zeros(len(values), 0) if up is None else up.float(),
                )
            )
        return SimulatedLinear(parts, layer.bias)

    def on(self, device: torch.device) -> "SimulatedLinear":
        """The same on another device."""
        return SimulatedLinear([part.on(device) for part in self.parts], self.bias.to(device))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        out = self.bias.repeat(len(tokens), 1)
        for part in self.parts:
            out[:, slice(*part.rows)] += part.apply(tokens)
        return out.view(*x.shape[:-1], -1)


class RealLinear(nn.Module):
    """A layer of the pack, run by its kernels on bfloat16 activations, with a LoRA as the pack adds it."""

    def __init__(self, layer: QuantizedLayer, compute: str) -> None:
        super().__init__()
        self.layer, self.compute = layer, compute
        self.lora: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)

    def on(self, device: torch.device) -> "RealLinear":
        """The same on another device, prepared for its kernels."""
        parts = (with_tensors(p, **{n: t.to(device) for n, t in p.tensors.items()}) for p in self.layer.parts)
        bias = None if self.layer.bias is None else self.layer.bias.to(device)
        layer = replace(self.layer, parts=tuple(parts), bias=bias)
        return RealLinear(with_derived(layer, self.compute, device), self.compute)

    def forward(self, x: Tensor) -> Tensor:
        return apply_layer(self.layer, x.to(STORED), self.compute, *self.lora).float()


class DenseLinear(nn.Module):
    """A layer whose activations stay as they are: a rounded weight (N, K) and a bias."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight.float(), bias.float()

    @staticmethod
    def of_layer(layer: QuantizedLayer) -> "DenseLinear":
        """What a modulation layer of the pack stands for."""
        return DenseLinear(dense_weight(layer), dense_bias(layer))

    def on(self, device: torch.device) -> "DenseLinear":
        """The same on another device."""
        return DenseLinear(self.weight.to(device), self.bias.to(device))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


Layer = SimulatedLinear | RealLinear | DenseLinear


class WithLora(nn.Module):
    """Any layer with a LoRA beside it, which sees the input as it is."""

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base, self.down, self.up = base, down, up

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.down) @ self.up.T


def add_lora(layer: nn.Module, down: Tensor, up: Tensor) -> nn.Module:
    """The layer with a LoRA; down (K, r), up (N, r) float32."""
    if isinstance(layer, RealLinear):
        with_lora = RealLinear(layer.layer, layer.compute)
        with_lora.lora = (down.to(STORED), up.to(STORED))
        return with_lora
    return WithLora(layer, down, up)
