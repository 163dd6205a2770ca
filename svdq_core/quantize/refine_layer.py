"""A quantized Linear whose scales, low-rank branch and bias may be trained; its codes and smoothing stay as they are.

    out = x @ (units * scales / smooth).T + (x @ proj_down) @ proj_up.T + bias

The bias here is the one without the shift of unsigned activations: that depends on the scales, which move, and is taken
out again when the layer is stored.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from ...kernels.format import E4M3_MAX, GELU_SHIFT
from ...kernels.part_weights import dequantize
from ..layer import Part, QuantizedLayer
from ..stack import same_bits
from .fit import overflow_error
from .grid import INT8, quantize_activations

# How far a step moves each kind of tensor, in units of the learning rate: factors of the branch in units of their own
# root mean square, gains of scales in units of the scale, the bias in units of what an input of unit size does.
BRANCH_PACE = 16.0


class TrainedPart(nn.Module):
    """A rectangle of a layer.

    Args:
        part: as a file holds it, of any scheme.
        dtype: that products are computed in.
    """

    def __init__(self, part: Part, dtype: torch.dtype):
        super().__init__()
        self.part, self.dtype = part, dtype
        self.is_fixed = part.scheme == "awq"
        self.shift = GELU_SHIFT if part.act_unsigned else 0.0
        values = dequantize(part.tensors, part.scheme)
        smooth = part.get("smooth_factor")
        self.smooth = None if smooth is None else smooth.float()
        self.gains = self.channel_gains = None
        self.scales = self.factors = values.new_zeros(0)
        if self.is_fixed:
            self.units = values.to(dtype)
        else:
            self.units = _units(part).to(dtype)
            scales = part["wscales"].float()
            self.scales = scales[:, None] if part.scheme == "int8" else scales.T.contiguous()
            self.gains = nn.Parameter(torch.zeros_like(self.scales))
            if part.scheme == "nvfp4":
                self.factors = _channel_factors(part)
                self.channel_gains = nn.Parameter(torch.zeros_like(self.factors))
        self.down = self.up = None
        if part.rank:
            down, up = part["proj_down"].float(), part["proj_up"].float()
            self.down_unit, self.up_unit = (float(t.square().mean().sqrt().clamp(min=1e-12)) for t in (down, up))
            self.down, self.up = nn.Parameter(down / self.down_unit), nn.Parameter(up / self.up_unit)
        weight = values if self.smooth is None else values / self.smooth
        self.output_unit = float(weight.square().sum(dim=1).mean().sqrt().clamp(min=1e-12))
        self.folded = 0.0
        if self.shift:
            self.folded = self.shift * weight.double().sum(dim=1).float()

    def weight(self) -> Tensor:
        """(N, K) of the residual for the raw input, in the dtype of products."""
        if self.is_fixed:
            return self.units
        assert self.gains is not None, "only the fixed ones have none"
        scales = self.scales * (1 + self.gains)
        if self.channel_gains is not None:
            scales = scales + (_to_e4m3(scales.detach()) - scales.detach())  # the gradient passes as if unrounded
            scales = scales * (self.factors * (1 + self.channel_gains))[:, None]
        groups = self.units.unflatten(1, (scales.shape[1], -1))
        weight = (groups * scales.to(self.dtype)[..., None]).flatten(1)
        return weight if self.smooth is None else weight / self.smooth.to(self.dtype)

    def apply_to(self, x: Tensor, bias: Tensor, bits: int | None) -> Tensor:
        """(T, K) -> (T, N) in the dtype of products.

        Args:
            bias: (N,) in that dtype.
            bits: of the activations, 8 or None for 16.
        """
        if x.shape[1] < self.units.shape[1]:  # columns of zeros fill up the last group
            x = pad(x, (0, self.units.shape[1] - x.shape[1]))
        rounds = bits is not None and self.smooth is not None
        if self.down is None or self.up is None:
            return linear((self._rounded(x) if rounds else x).to(self.dtype), self.weight(), bias)
        down, up = (self.down * self.down_unit).to(self.dtype), (self.up * self.up_unit).to(self.dtype)
        if not rounds:  # one product instead of three: the input is what takes the memory
            return linear(x.to(self.dtype), torch.addmm(self.weight(), up, down.T), bias)
        projected = x.to(self.dtype) @ down
        return torch.addmm(linear(self._rounded(x).to(self.dtype), self.weight(), bias), projected, up.T)

    def _rounded(self, x: Tensor) -> Tensor:
        """The input that 8-bit activations stand for; the gradient passes as if they were not rounded."""
        assert self.smooth is not None, "only the fixed ones have none"
        with torch.no_grad():
            x_hat = (x.float() + self.shift) / self.smooth
            moved = quantize_activations(x_hat, INT8, torch.float32).sub_(x_hat).mul_(self.smooth)
        return x + moved.to(x.dtype)

    @torch.no_grad()
    def stored(self) -> Part:
        """The part with what was trained, rounded as files hold it."""
        tensors = dict(self.part.tensors)
        if self.gains is not None:
            scales, dtype = self.scales * (1 + self.gains), tensors["wscales"].dtype
            if self.part.scheme == "int8":
                tensors["wscales"] = scales[:, 0].contiguous()
            else:
                scales = _to_e4m3(scales) if self.channel_gains is not None else scales
                tensors["wscales"] = scales.T.contiguous().to(dtype)
        if self.channel_gains is not None:
            whole = tensors.pop("wtscale", None)
            like = next(t for t in (tensors.get("wcscales"), whole, tensors["smooth_factor"]) if t is not None)
            tensors["wcscales"] = (self.factors * (1 + self.channel_gains)).to(like.dtype)
        if self.down is not None and self.up is not None:
            tensors["proj_down"] = (self.down * self.down_unit).to(tensors["proj_down"].dtype)
            tensors["proj_up"] = (self.up * self.up_unit).to(tensors["proj_up"].dtype)
        return replace(self.part, tensors=tensors)


class RefinedLinear(nn.Module):
    """A quantized Linear to be trained; it takes the place of the model's own.

    Args:
        layer: as a file holds it, on the device that it will run on.
        dtype: that products are computed in; sums, scales and factors are float32.
        bits: of the activations: 8, or None for 16. Four would shrink what is regressed.
    """

    def __init__(self, layer: QuantizedLayer, dtype: torch.dtype = torch.float32, bits: int | None = None):
        super().__init__()
        self.layer, self.bits = layer.without_derived(), bits
        self.dtype, self.parts = dtype, [TrainedPart(part, dtype) for part in self.layer.parts]
        self.registered = nn.ModuleList(self.parts)
        bias = torch.zeros(layer.out_features, device=layer.parts[0]["qweight"].device)
        if layer.bias is not None:
            bias += layer.bias.float()
        for part in self.parts:
            if part.shift:
                bias[slice(*part.part.rows)] += part.folded
        self.bias_unit = sum(part.output_unit for part in self.parts) / len(self.parts)
        self.bias = nn.Parameter(bias / self.bias_unit, requires_grad=layer.bias is not None)

    def parameters_by_pace(self) -> list[tuple[nn.Parameter, float]]:
        """What may be trained, and how much faster than the learning rate each of them moves."""
        found = [(self.bias, 1.0)] if self.bias.requires_grad else []
        for part in self.parts:
            found += [(p, 1.0) for p in (part.gains, part.channel_gains) if p is not None]
            found += [(p, BRANCH_PACE) for p in (part.down, part.up) if p is not None]
        return found

    def forward(self, x: Tensor, *_) -> Tensor:
        """(..., K) -> (..., N) of x.dtype."""
        tokens, bias = x.reshape(-1, x.shape[-1]), self.bias * self.bias_unit
        spans: dict[tuple[int, int], Tensor] = {}
        for part in self.parts:
            rows, own = part.part.rows, part.part.get("bias")
            added = torch.zeros_like(bias[slice(*rows)]) if rows in spans else bias[slice(*rows)]
            added = added if own is None else added + own.float()
            out = part.apply_to(tokens[:, slice(*part.part.columns)], added.to(part.dtype), self.bits)
            spans[rows] = spans[rows] + out if rows in spans else out
        columns = [spans[rows] for rows in sorted(spans)]
        total = columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)
        return total.to(x.dtype).view(*x.shape[:-1], -1)

    def take(self, layer: QuantizedLayer) -> None:
        """Become another layer of the same sizes; what was trained or shared is forgotten."""
        other = RefinedLinear(layer, self.dtype, self.bits)
        self.layer, self.bias, self.bias_unit = other.layer, other.bias, other.bias_unit
        self.parts, self.registered = other.parts, other.registered

    @torch.no_grad()
    def stored(self, name: str) -> QuantizedLayer:
        """The layer as a file will hold it.

        Raises:
            SVDQuantError: a result does not fit its dtype.
        """
        parts = tuple(part.stored() for part in self.parts)
        bias = self.layer.bias
        if bias is not None:
            total = self.bias * self.bias_unit
            for part in parts:
                if part.act_unsigned:
                    weight = dequantize(part.tensors, part.scheme) / part["smooth_factor"].float()
                    total[slice(*part.rows)] -= GELU_SHIFT * weight.double().sum(dim=1).float()
            bias = total.to(bias.dtype)
        for tensor in (*(t for p in parts for t in p.tensors.values()), *(() if bias is None else (bias,))):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                raise overflow_error(name, tensor.dtype)
        return replace(self.layer, parts=parts, bias=bias)


def make_trainable(
    layers: Mapping[str, QuantizedLayer], dtype: torch.dtype, bits: int | None
) -> dict[str, RefinedLinear]:
    """Layers of one block to be trained together.

    Those that share the input side of their branch, bit for bit, go on sharing it: the runtime computes it once.
    """
    made = {name: RefinedLinear(layer, dtype, bits) for name, layer in layers.items()}
    firsts: list[TrainedPart] = []
    for part in (p for module in made.values() for p in module.parts if p.down is not None):
        other = next((o for o in firsts if _share_input(o.part, part.part)), None)
        if other is None:
            firsts.append(part)
        else:
            part.down = other.down
    return made


def on_device(layer: QuantizedLayer, device: torch.device) -> QuantizedLayer:
    """The layer, as files hold it, somewhere else."""
    layer = layer.without_derived()
    parts = (replace(part, tensors={n: t.to(device) for n, t in part.tensors.items()}) for part in layer.parts)
    return replace(layer, parts=tuple(parts), bias=None if layer.bias is None else layer.bias.to(device), arena=None)


def _share_input(left: Part, right: Part) -> bool:
    return all(same_bits(left[name], right[name]) for name in ("proj_down", "smooth_factor"))


def _units(part: Part) -> Tensor:
    """The codes as numbers: (N, K) float32."""
    ones = torch.ones_like(part["wscales"].float()).to(part["wscales"].dtype)
    kept = {"qweight": part["qweight"], "wscales": ones}
    return dequantize(kept, part.scheme)


def _channel_factors(part: Part) -> Tensor:
    """What an output channel's scales are multiplied by: (N,) float32."""
    factors = torch.ones(part.out_features, device=part["qweight"].device)
    for name in ("wtscale", "wcscales"):
        tensor = part.get(name)
        factors = factors if tensor is None else factors * tensor.float()
    return factors


def _to_e4m3(scales: Tensor) -> Tensor:
    return scales.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float()
