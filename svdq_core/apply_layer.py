"""What a quantized layer computes, and the dense layer that it stands for."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..kernels.epilogue import NOTHING_MORE, Epilogue
from ..kernels.format import GELU_SHIFT
from ..kernels.joined_factors import branch_of
from ..kernels.launching.replay import Call, replay
from ..kernels.layer_call import Factors, LayerCall
from ..kernels.part_weights import dequantize
from ..kernels.paths.layer_paths import run
from .blob import BlobLayout
from .layer import Part, QuantizedLayer
from .padding import widen
from .shared_input import SharedCall, SharedInput, can_share, run_shared


@lru_cache(maxsize=4096)
def _layout(text: str) -> BlobLayout:
    return BlobLayout.from_json(text)


# One operation for a whole Linear of ComfyUI's: torch.compile sees neither views of the blob nor parts, Inductor finds
# no kernel to compile a second time in its own harness, and descriptors, Gluon kernels and the ladder work as without.
@torch.library.custom_op("svdquant::blob_linear", mutates_args=())
def _blob_linear_op(
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
    return apply_blob(
        blob, layout, bias, x, compute, lora_down=lora_down, lora_up=lora_up, gelu=gelu, gelu_from=gelu_from
    )


def _refuse_gradient(_context, _gradient) -> None:
    raise RuntimeError(
        "SVDQuant layers compute no gradients under torch.compile. Run the model without it where one is asked for."
    )


_blob_linear_op.register_autograd(_refuse_gradient)


@_blob_linear_op.register_fake
def _(x, _blob, _bias, _lora_down, _lora_up, layout, *_others):
    return x.new_empty((*x.shape[:-1], _layout(layout).out_features))


def apply_blob(
    blob: Tensor,
    layout: str,
    bias: Tensor | None,
    x: Tensor | Sequence[Tensor],
    compute: str,
    *,
    lora_down: Tensor | None = None,
    lora_up: Tensor | None = None,
    gelu: str | None = None,
    gelu_from: int = 0,
    shared: SharedInput | None = None,
) -> Tensor:
    """apply_layer for the layer that a blob holds, without making views of it again in every step.

    Args:
        blob: (bytes,) uint8 on the device of x. layout: BlobLayout.to_json of it. Others as apply_layer.
        shared: the slot of the model, in which layers that read one tensor leave it quantized for each other.
    """
    if torch.compiler.is_compiling() and isinstance(x, Tensor):
        return _blob_linear_op(x, blob, bias, lora_down, lora_up, layout, compute, gelu, gelu_from)
    sides = (x,) if isinstance(x, Tensor) else x
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*sides, bias, lora_down, lora_up)):
        layer = _layout(layout).read(blob, bias)  # launches by address would leave no trace for autograd
        return apply_layer(layer, sides, compute, lora_down, lora_up, gelu=gelu, gelu_from=gelu_from)
    if shared is not None:
        places = _layout(layout)
        if isinstance(x, Tensor) and x.numel() and lora_down is None and can_share(places):
            done = run_shared(
                SharedCall(places, layout, blob, bias=bias, x=x, compute=compute), shared, gelu, gelu_from
            )
            if done is not None:
                return done
        shared.empty()
    situation = layout, compute, gelu, gelu_from, len(sides)
    done = replay(situation, (*sides, blob, bias, lora_down, lora_up))
    if not isinstance(done, Call):
        assert isinstance(done, Tensor), "a layer has one result"
        return done
    with done as call:  # noted, so that it is done by address the next time
        layer = _layout(layout).read(blob, bias, as_it_lies=True)
        out = call.result = apply_layer(layer, sides, compute, lora_down, lora_up, gelu=gelu, gelu_from=gelu_from)
    return out


def apply_layer(
    layer: QuantizedLayer,
    x: Tensor | Sequence[Tensor],
    compute: str,
    lora_down: Tensor | None = None,
    lora_up: Tensor | None = None,
    *,
    gelu: str | None = None,
    gelu_from: int = 0,
) -> Tensor:
    """Run a layer on activations.

    Args:
        x: (..., in_features) float32, bfloat16 or float16; or its columns in several tensors side by side, cut where
            parts of the layer begin.
        compute: "w4a4", "w4a8" or "w4a16"; see kernels/layer_call.py.
        lora_down, lora_up: (in_features, r) and (out_features, r), strength included, or None.
        gelu: "input" or "output": to which of them the layer applies a GELU (tanh); None: to neither.
        gelu_from: first column that goes through it; of the input, one at which a part begins.

    Returns:
        (..., out_features) of x.dtype.

    Raises:
        ValueError: there is no such compute mode.
    """
    sides = [x] if isinstance(x, Tensor) else x
    shape = sides[0].shape[:-1]
    tokens = [side.reshape(-1, side.shape[-1]) for side in sides]
    sums_up = layer.parts[0].columns != (0, layer.in_features)  # parts on columns; others write next to each other
    last, out = layer.parts[-1], None
    if len(layer.parts) > 1:
        out = tokens[0].new_empty((tokens[0].shape[0], layer.out_features))
    for part in layer.parts:
        (top, bottom), (left, right) = part.rows, part.columns
        finishes = not sums_up or part is last  # what belongs to a sum as a whole: the bias, the GELU behind it
        lora = None
        if lora_down is not None and lora_up is not None:
            lora = Factors(widen(lora_down[left:right], part.width, 0), lora_up[top:bottom])
        first = max(0, gelu_from - top) if gelu == "output" and finishes else None
        if first is not None and first >= part.out_features:
            first = None
        epilogue = NOTHING_MORE
        if out is not None or first is not None:
            epilogue = Epilogue(None if out is None else out[:, top:bottom], sums_up and left > 0, first)
        call = LayerCall(
            widen(_columns(tokens, left, right), part.width, 1),
            part.tensors,
            part.scheme,
            "w4a16" if part.scheme == "awq" else compute,
            branch_of(part.factors, lora),
            _bias_of(part, layer.bias if finishes else None),
            part.act_unsigned,
            gelu == "input" and left >= gelu_from,
            epilogue,
        )
        result = run(call)
        out = result if out is None else out
    assert out is not None, "a layer has parts"
    return out.view(*shape, layer.out_features)


def _bias_of(part: Part, of_layer: Tensor | None) -> Tensor | None:
    """What a part adds: its own bias, and the layer's in its rows."""
    own, shared = part.get("bias"), None if of_layer is None else of_layer[part.rows[0] : part.rows[1]]
    return shared if own is None else own if shared is None else shared + own


def _columns(sides: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """Columns of tensors that lie side by side; none of them may be cut in two but the only one."""
    if len(sides) == 1:
        columns = sides[0][:, start:stop]
        return columns if columns.stride(1) == 1 else columns.contiguous()  # rows may be apart: every path takes them
    edges = list(pairwise(accumulate((side.shape[1] for side in sides), initial=0)))
    columns = sides[edges.index((start, stop))]
    return columns if columns.stride(1) == 1 else columns.contiguous()


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
    return weight[:, : part.in_features]
