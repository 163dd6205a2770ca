"""What a quantized layer computes, and the dense layer that it stands for."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..kernels.awq_linear import awq_linear
from ..kernels.epilogue import Epilogue, settle
from ..kernels.format import GELU_SHIFT
from ..kernels.launching.replay import replayed
from ..kernels.svdquant_linear import dequantize, svdquant_linear
from .layer import BlobLayout, Part, QuantizedLayer


@lru_cache(maxsize=4096)
def _layout(text: str) -> BlobLayout:
    return BlobLayout.from_json(text)


def _blob_linear(
    x: Tensor,
    blob: Tensor,
    bias: Tensor | None,
    lora_down: Tensor | None,
    lora_up: Tensor | None,
    layout: str,
    compute: str,
    gelu: str | None,
    gelu_from: int,
) -> Tensor:
    return _run_blob((x,), blob, bias, lora_down, lora_up, layout, compute, gelu, gelu_from)


def _run_blob(sides: Sequence[Tensor], blob, bias, lora_down, lora_up, layout, compute, gelu, gelu_from) -> Tensor:
    def run() -> Tensor:
        layer = _layout(layout).read(blob, bias)
        return apply_layer(layer, sides, compute, lora_down, lora_up, gelu, gelu_from)

    situation = layout, compute, gelu, gelu_from, len(sides)
    return replayed(situation, (*sides, blob, bias, lora_down, lora_up), run)


# One operation for a whole host Linear: torch.compile sees neither views of the blob nor parts.
_blob_linear_op = torch.library.custom_op("svdquant::blob_linear", _blob_linear, mutates_args=())


@_blob_linear_op.register_fake
def _(x, _blob, _bias, _lora_down, _lora_up, layout, *_others):
    return x.new_empty((*x.shape[:-1], _layout(layout).out_features))


def apply_blob(
    blob: Tensor,
    layout: str,
    bias: Tensor | None,
    x: Tensor | Sequence[Tensor],
    compute: str,
    lora_down: Tensor | None = None,
    lora_up: Tensor | None = None,
    gelu: str | None = None,
    gelu_from: int = 0,
) -> Tensor:
    """apply_layer for the layer that a blob holds, without making views of it again in every step.

    Args:
        blob: (bytes,) uint8 on the device of x. layout: BlobLayout.to_json of it. Others as apply_layer.
    """
    operands = blob, bias, lora_down, lora_up, layout, compute, gelu, gelu_from
    if isinstance(x, Tensor) and torch.compiler.is_compiling():
        return _blob_linear_op(x, *operands)
    return _run_blob((x,) if isinstance(x, Tensor) else x, *operands)


def apply_layer(
    layer: QuantizedLayer,
    x: Tensor | Sequence[Tensor],
    compute: str,
    lora_down: Tensor | None = None,
    lora_up: Tensor | None = None,
    gelu: str | None = None,
    gelu_from: int = 0,
) -> Tensor:
    """Run a layer on activations.

    Args:
        x: (..., in_features) float32, bfloat16 or float16; or its columns in several tensors side by side, cut where
            parts of the layer begin.
        compute: "w4a4", "w4a8" or "w4a16"; see kernels/svdquant_linear.py.
        lora_down, lora_up: (in_features, r) and (out_features, r), strength included, or None.
        gelu: "input" or "output": to which of them the layer applies a GELU (tanh); None: to neither.
        gelu_from: first column of the output that goes through it.

    Returns:
        (..., out_features) of x.dtype.
    """
    sides = [x] if isinstance(x, Tensor) else x
    shape = sides[0].shape[:-1]
    tokens = [side.reshape(-1, side.shape[-1]) for side in sides]
    out = None if len(layer.parts) == 1 else tokens[0].new_empty((tokens[0].shape[0], layer.out_features))
    sums_up = layer.parts[0].columns != (0, layer.in_features)  # parts on columns; others write next to each other
    last = layer.parts[-1]
    for part in layer.parts:
        bias = None
        if layer.bias is not None and (not sums_up or part is last):  # the bias enters a sum once
            bias = layer.bias[part.rows[0] : part.rows[1]]
        columns = _columns(tokens, *part.columns)  # strided rows: every path takes them
        down = None if lora_down is None else lora_down[part.columns[0] : part.columns[1]]
        up = None if lora_up is None else lora_up[part.rows[0] : part.rows[1]]
        place = None if out is None else out[:, part.rows[0] : part.rows[1]]
        first = max(0, gelu_from - part.rows[0]) if gelu == "output" and (not sums_up or part is last) else None
        if first is not None and first >= part.out_features:
            first = None
        epilogue = Epilogue(place, sums_up and part.columns[0] > 0, first)
        result = _apply_part(part, columns, compute, bias, down, up, gelu == "input", epilogue)
        out = result if out is None else out
    assert out is not None, "a layer has parts"
    return out.view(*shape, layer.out_features)


def _columns(sides: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """Columns of tensors that lie side by side; none of them may be cut in two but the only one."""
    if len(sides) == 1:
        return sides[0][:, start:stop]
    edges = list(pairwise(accumulate((side.shape[1] for side in sides), initial=0)))
    return sides[edges.index((start, stop))]


def _apply_part(
    part: Part,
    x: Tensor,
    compute: str,
    bias: Tensor | None,
    lora_down: Tensor | None,
    lora_up: Tensor | None,
    gelu: bool,
    epilogue: Epilogue,
) -> Tensor:
    """One part, and what is done with its result."""
    own = part.get("bias")
    if own is not None:
        bias = own if bias is None else bias + own
    if part.scheme == "awq":
        down, up = (_join(part.get("proj_down"), lora_down), _join(part.get("proj_up"), lora_up))
        return settle(awq_linear(x, part.tensors, bias, down, up), epilogue)
    arguments = x, part.tensors, part.scheme, compute, bias, lora_down, lora_up, part.act_unsigned, gelu
    return svdquant_linear(*arguments, epilogue)


def _join(own: Tensor | None, added: Tensor | None) -> Tensor | None:
    if own is None or added is None:
        return added if own is None else own
    return torch.cat((own.to(added.dtype), added), dim=1)


def dense_weight(layer: QuantizedLayer) -> Tensor:
    """The weight that the layer stands for, smoothing undone and low-rank branch included: (N, K) float32."""
    weight = torch.zeros(layer.out_features, layer.in_features, device=layer.parts[0]["qweight"].device)
    for part in layer.parts:
        weight[part.rows[0] : part.rows[1], part.columns[0] : part.columns[1]] = _dense_part(part)
    return weight


def dense_bias(layer: QuantizedLayer) -> Tensor | None:
    """The bias that goes with dense_weight, GELU shift undone: (N,) float32, or None if the layer has none."""
    own = [p for p in layer.parts if p.get("bias") is not None or p.act_unsigned]
    if layer.bias is None and not own:
        return None
    device = layer.parts[0]["qweight"].device
    bias = torch.zeros(layer.out_features, device=device) if layer.bias is None else layer.bias.float().clone()
    for part in own:
        if part.get("bias") is not None:
            bias[part.rows[0] : part.rows[1]] += part["bias"].float()
        if part.act_unsigned:
            residual = dequantize(part.tensors, part.scheme) / part["smooth_factor"].float()
            bias[part.rows[0] : part.rows[1]] += GELU_SHIFT * residual.sum(dim=1)
    return bias


def _dense_part(part: Part) -> Tensor:
    weight = dequantize(part.tensors, part.scheme)
    if part.scheme != "awq":
        weight = weight / part["smooth_factor"].float()
    if part.rank:
        weight = weight + part["proj_up"].float() @ part["proj_down"].float().T
    return weight
