"""What the benchmark compares: each contender sets itself up for a layer and is checked against what it should do."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.layer_call import COMPUTE_MODES
from svdquant_pack.kernels.packing import pack_nibbles
from svdquant_pack.kernels.part_weights import dequantize, find_channel_scales
from svdquant_pack.svdq_core.apply_layer import apply_blob
from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.layer import Part, QuantizedLayer

Run = Callable[[], Tensor]
DEVICE = "cuda"
DTYPE = torch.bfloat16
# RMS error against the contender's own reference. Ours: both sides may be rounded to bfloat16. Others quantize less
# finely or otherwise than ours, so for them the dense layer is the reference and a few percent are their accuracy.
OURS, OTHERS = 8e-3, 0.2


class MismatchError(Exception):
    """A contender computed something else than it should."""


class Layer:
    """A random int4 layer and what its dense form computes.

    Args:
        tokens, out_features, in_features, rank: M, N, K, R.
    """

    def __init__(self, tokens: int, out_features: int, in_features: int, rank: int):
        generator = torch.Generator(DEVICE).manual_seed(out_features + in_features + rank)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=DEVICE)

        self.x = normal(tokens, in_features).to(DTYPE)
        self.bias = normal(out_features).to(DTYPE)
        residual = normal(out_features, in_features) / in_features**0.5
        scales = residual.view(out_features, -1, 64).abs().amax(dim=-1) / 7
        codes = torch.round(residual.view(out_features, -1, 64) / scales[..., None]).clamp(-7, 7).to(torch.int8)
        self.tensors = {
            "qweight": pack_nibbles(codes.view(out_features, in_features)),
            "wscales": scales.T.to(DTYPE).contiguous(),
            "smooth_factor": (torch.rand(in_features, generator=generator, device=DEVICE) + 0.5).to(DTYPE),
            "proj_down": (normal(in_features, rank) / in_features**0.5).to(DTYPE),
            "proj_up": (normal(out_features, rank) / max(rank, 1) ** 0.5).to(DTYPE),
        }
        self.tensors["channel_scales"] = find_channel_scales(self.tensors, "int4")

    @cached_property
    def int8_tensors(self) -> dict[str, Tensor]:
        """The same layer with 8-bit codes."""
        codes, scales = reference.requantize_int8(dequantize(self.tensors, "int4"))
        tensors = {name: tensor for name, tensor in self.tensors.items() if name != "channel_scales"}
        return tensors | {"qweight": codes, "wscales": scales}

    @cached_property
    def weight(self) -> Tensor:
        """The dense weight that the layer stands for, (N, K) bfloat16."""
        dense = dequantize(self.tensors, "int4") / self.tensors["smooth_factor"].float()
        return (dense + self.tensors["proj_up"].float() @ self.tensors["proj_down"].float().T).to(DTYPE)

    @cached_property
    def dense_out(self) -> Tensor:
        """What the dense layer computes, (M, N) bfloat16."""
        return F.linear(self.x, self.weight, self.bias)

    def expected(self, compute: str) -> Tensor:
        """What the reference computes in a mode, (M, N) bfloat16."""
        tensors = self.tensors
        operands = self.x, tensors["smooth_factor"], tensors["proj_down"]
        weight = dequantize(tensors, "int4")
        if compute == "w4a4":
            qx, ascales, x_down = reference.quantize_act_int4(*operands)
            both = qx, ascales, tensors["qweight"], tensors["wscales"]
            return reference.gemm_w4a4(*both, x_down=x_down, proj_up=tensors["proj_up"], bias=self.bias)
        if compute == "w4a8":
            quantized, int8 = reference.quantize_act_int8(*operands), reference.requantize_int8(weight)
            return reference.gemm_w4a8(quantized, int8, tensors["proj_up"], self.bias)
        branch = {"proj_down": tensors["proj_down"], "proj_up": tensors["proj_up"]}
        return reference.gemm_w4a16(*operands[:2], weight, **branch, bias=self.bias)


@dataclass(frozen=True)
class Contender:
    """A way to compute the layer.

    Args:
        name: of the row.
        prepare: what to time for a layer, or None where it cannot run here.
        has_rank: one row for each rank.
        expected: what it should compute; None: the dense layer, within its own accuracy.
        tolerance: largest RMS error / RMS of the expected values.
        finish: makes the layer's output of what is timed, where that is less; for the check only.
    """

    name: str
    prepare: Callable[[Layer], Run | None]
    has_rank: bool = False
    expected: Callable[[Layer], Tensor] | None = None
    tolerance: float = OTHERS
    finish: Callable[[Layer, Tensor], Tensor] | None = None

    def check(self, layer: Layer, run: Run) -> None:
        """Raise MismatchError unless the result is finite and close to what it should be."""
        wanted = (layer.dense_out if self.expected is None else self.expected(layer)).float()
        out = run() if self.finish is None else self.finish(layer, run())
        error = ((out.float() - wanted).square().mean() / wanted.square().mean()).sqrt().item()
        if not error <= self.tolerance:
            shape = f"{layer.x.shape[0]} x {layer.x.shape[1]} -> {layer.bias.shape[0]}"
            raise MismatchError(f"{self.name}, {shape}: relative error {error:.3g}, allowed {self.tolerance:.3g}.")


def _bf16(layer: Layer) -> Run:
    return lambda: F.linear(layer.x, layer.weight, layer.bias)


def _fp8(layer: Layer) -> Run | None:
    if torch.version.hip or torch.cuda.get_device_capability() < (8, 9):
        return None
    limit = torch.finfo(torch.float8_e4m3fn).max

    def quantize(values: Tensor) -> tuple[Tensor, Tensor]:
        scales = values.abs().amax(dim=1, keepdim=True).float() / limit
        return (values.float() / scales).to(torch.float8_e4m3fn), scales

    (qx, x_scales), (qweight, w_scales) = quantize(layer.x), quantize(layer.weight)
    arguments = {"scale_a": x_scales, "scale_b": w_scales.T, "bias": layer.bias, "out_dtype": DTYPE}
    return lambda: torch._scaled_mm(qx, qweight.T, **arguments)


def _int8_operands(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of both sides and what scales their product."""
    (qx, x_scales), (qweight, w_scales) = (reference.requantize_int8(t.float()) for t in (layer.x, layer.weight))
    return qx, qweight, x_scales[:, None] * w_scales


def _int8(layer: Layer) -> Run | None:
    if layer.x.shape[0] <= 16:
        return None  # torch._int_mm wants more
    qx, qweight, _ = _int8_operands(layer)
    return lambda: torch._int_mm(qx, qweight.T)


def _finish_int8(layer: Layer, product: Tensor) -> Tensor:
    return product.float() * _int8_operands(layer)[2] + layer.bias.float()


def _in_the_host(layer: Layer, tensors: dict[str, Tensor], scheme: str, compute: str) -> Run:
    """The layer as the host's Linear calls it."""
    rows, columns, bias = layer.bias.shape[0], layer.x.shape[1], layer.bias
    blob, layout = to_blob(QuantizedLayer(columns, rows, (Part(scheme, (0, rows), (0, columns), False, tensors),)))
    text = layout.to_json()
    return lambda: apply_blob(blob, text, bias, layer.x, compute)


def _ours(compute: str) -> Callable[[Layer], Run]:
    return lambda layer: _in_the_host(layer, layer.tensors, "int4", compute)


def _ours_int8(layer: Layer) -> Run:
    return _in_the_host(layer, layer.int8_tensors, "int8", "w4a8")


def _kitchen_svdquant(layer: Layer) -> Run | None:
    if not find_spec("comfy_kitchen") or not layer.tensors["proj_up"].shape[1]:
        return None
    import comfy_kitchen

    tensors = layer.tensors

    def run() -> Tensor:
        quantized = comfy_kitchen.quantize_svdquant_w4a4(layer.x, tensors["smooth_factor"], tensors["proj_down"])
        codes, scales, x_down = quantized
        factors = x_down, tensors["proj_up"], layer.bias
        out = comfy_kitchen.scaled_mm_svdquant_w4a4(codes, tensors["qweight"], scales, tensors["wscales"], *factors)
        return out[: layer.x.shape[0]]

    return run


def _kitchen_int8(layer: Layer) -> Run | None:
    if not find_spec("comfy_kitchen"):
        return None
    import comfy_kitchen

    codes, scales = reference.requantize_int8(layer.weight.float())
    return lambda: comfy_kitchen.int8_linear(layer.x, codes, scales[:, None], layer.bias, out_dtype=DTYPE)


CONTENDERS = (
    Contender("BF16 F.linear", _bf16),
    Contender("FP8 torch._scaled_mm by rows, product only", _fp8),
    Contender("int8 torch._int_mm, product only", _int8, finish=_finish_int8),
    Contender("comfy-kitchen int8_linear", _kitchen_int8),
    Contender("comfy-kitchen SVDQuant W4A4", _kitchen_svdquant, has_rank=True),
    *(
        Contender(f"ours {compute}", _ours(compute), True, lambda layer, c=compute: layer.expected(c), OURS)
        for compute in COMPUTE_MODES
    ),
    # the codes are those that w4a8 makes of the 4-bit ones, so it must come to the same
    Contender("ours w8a8 (int8 weights)", _ours_int8, True, lambda layer: layer.expected("w4a8"), OURS),
)
