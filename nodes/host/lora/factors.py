"""The tensors of a LoraPlan, and what a layer adds of them beside its low-rank branch."""

from collections.abc import Callable, Hashable, Mapping

import comfy.lora
import torch
from comfy.weight_adapter import LoHaAdapter, LoRAAdapter
from torch import Tensor

from ....svdq_core.apply_layer import dense_bias, dense_weight
from ....svdq_core.layer import QuantizedLayer
from .identity import signature_of
from .kron import kron_matrices
from .patches import is_additive
from .plan import Block, LoraPlan, down_tensors, up_tensors


def build_lora(
    plan: LoraPlan,
    layer: Callable[[], QuantizedLayer],
    sizes: tuple[int, int],
    *,
    device: torch.device,
    dtype: torch.dtype,
    old: LoraPlan | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    in_place: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a plan: lora_down (K, r), lora_up (N, r), lora_delta (N, K), lora_left<i>, lora_right<i>, and
    lora_bias (N,), which is float32.

    Columns that a former plan has made already are taken over.

    Args:
        layer: gives the layer on the device; asked for only where a patch depends on its own weight or bias.
        sizes: (in_features, out_features). dtype: of the result.
        old, tensors: the former plan, and its tensors, which must be on the device with this dtype.
        in_place: the former tensors may be changed, which is enough where only strengths differ.
    """
    with torch.inference_mode():
        tensors = tensors or {}
        out = (
            _build_factors(plan, sizes, device=device, dtype=dtype, old=old, tensors=tensors, in_place=in_place)
            if plan.blocks
            else {}
        )
        for i, kron in enumerate(plan.krons):
            left, right = kron_matrices(kron.value, device)
            out[f"lora_left{i}"], out[f"lora_right{i}"] = (left * kron.factor).to(dtype), right.to(dtype)
        if plan.dense and old is not None and "lora_delta" in tensors and _same_dense(old, plan):
            out["lora_delta"] = tensors["lora_delta"]
        elif plan.dense:
            shape = sizes[1], sizes[0]
            out["lora_delta"] = _difference(plan.dense, lambda: dense_weight(layer()), shape, device).to(dtype)
        if plan.has_bias:
            out["lora_bias"] = _build_bias(plan, layer, sizes[1], device)
        return out


def _same_dense(old: LoraPlan, plan: LoraPlan) -> bool:
    return signature_of(list(old.dense)) == signature_of(list(plan.dense))


def _difference(
    patches: tuple[tuple, ...], original: Callable[[], Tensor], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """What the host's own arithmetic makes of the patches, less the original; float32."""
    additive = all(is_additive(patch) for patch in patches)
    before = torch.zeros(shape, device=device) if additive else original()
    known = {"weight": [(before, None)]}
    return comfy.lora.calculate_weight(list(patches), before.clone(), "weight", original_weights=known).sub_(before)


def _build_bias(plan: LoraPlan, layer: Callable[[], QuantizedLayer], out_features: int, device: torch.device) -> Tensor:
    """(N,) float32, to be added to the bias as it is stored.

    Patches are meant for the true bias. What a layer stores can differ from it by what its codes need (the shift of a
    layer behind a GELU); where the layer's own weight is scaled, that is scaled with it.
    """
    difference = _difference(plan.bias, lambda: _true_bias(layer(), device), (out_features,), device)
    if plan.scale != 1.0:
        quantized = layer()
        stored = 0.0 if quantized.bias is None else quantized.bias.float()
        difference += (1.0 - plan.scale) * (_true_bias(quantized, device) - stored)
    return difference


def _true_bias(layer: QuantizedLayer, device: torch.device) -> Tensor:
    bias = dense_bias(layer)
    return torch.zeros(layer.out_features, device=device) if bias is None else bias


def _build_factors(
    plan: LoraPlan,
    sizes: tuple[int, int],
    *,
    device: torch.device,
    dtype: torch.dtype,
    old: LoraPlan | None,
    tensors: Mapping[str, Tensor],
    in_place: bool,
) -> dict[str, Tensor]:
    places = _places(old) if old is not None and "lora_down" in tensors else {}
    if in_place and places and list(places) == [block.identity for block in plan.blocks]:
        down, up = tensors["lora_down"], tensors["lora_up"]
    else:
        down, up = (torch.zeros(size, plan.rank, device=device, dtype=dtype) for size in sizes)
    start = 0
    for block in plan.blocks:
        here = slice(start, start + block.rank)
        start += block.rank
        before, terms = places.get(block.identity, (None, None))
        if before is None:
            _write_down(down[:, here], block)
        elif down is not tensors.get("lora_down"):
            down[:, here] = tensors["lora_down"][:, before]
        if before is None or terms != [term.identity for term in block.terms]:
            _write_up(up[:, here], block)
        elif up is not tensors.get("lora_up"):
            up[:, here] = tensors["lora_up"][:, before]
    return {"lora_down": down, "lora_up": up}


def _places(plan: LoraPlan) -> dict[Hashable, tuple[slice, list]]:
    """Block identity -> its columns, and the identities of its terms."""
    places, start = {}, 0
    for block in plan.blocks:
        places[block.identity] = slice(start, start + block.rank), [term.identity for term in block.terms]
        start += block.rank
    return places


def _write_down(target: Tensor, block: Block) -> None:
    """Fill (K, rank): the down-projection of the block, transposed."""
    down, columns = _down(block.terms[0].value, target.device), block.identity[-1]
    (target if columns is None else target.narrow(0, columns[1], columns[2])).copy_(down.T)


def _write_up(target: Tensor, block: Block) -> None:
    """Fill (N, rank): the sum of the terms of the block."""
    if len(block.terms) == 1 and block.terms[0].offset is None:
        target.copy_(_up(block.terms[0].value, target.device) * block.terms[0].factor)
        return
    total = torch.zeros(target.shape, device=target.device)
    for term in block.terms:
        rows = total if term.offset is None else total.narrow(0, term.offset[1], term.offset[2])
        rows += _up(term.value, target.device) * term.factor
    target.copy_(total)


def add_bias(bias: Tensor | None, added: Tensor | None, x: Tensor) -> Tensor | None:
    """A layer's bias with what patches add to it.

    Args:
        bias: (N,) as stored, or None. added: (N,) float32, or None for nothing.
        x: what the layer reads; the sum keeps the bias's dtype, for which kernels are compiled, unless x is float32.
    """
    if added is None:
        return bias
    added = added.to(x.device)
    if bias is None:
        return added.to(x.dtype)
    return (bias + added).to(x.dtype if x.dtype == torch.float32 else bias.dtype)


def add_lora(out: Tensor, x: Tensor, plan: LoraPlan, tensors: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """Add what does not ride in the low-rank branch: a scaled weight, LoKrs and the dense difference.

    Args:
        out: (..., N), changed in place: the layer's result; where plan.scale is not 1, without bias and factors.
        x: (..., K). tensors: those of build_lora. bias: (N,), patches included, or None.
    """
    if plan.scale != 1.0:
        out *= plan.scale
        if bias is not None:
            out += bias.to(out.dtype)
        if "lora_down" in tensors:
            down, up = (tensors[name].to(x.device, x.dtype) for name in ("lora_down", "lora_up"))
            out += x @ down @ up.T
    for i, kron in enumerate(plan.krons):
        left, right = (tensors[f"lora_{side}{i}"].to(x.device) for side in ("left", "right"))
        dim, start, length = kron.offset or (None, 0, 0)
        columns = x.narrow(-1, start, length) if dim == 1 else x
        # (left ⊗ right) x, with x as a matrix of left's by right's inputs
        inner = torch.nn.functional.linear(columns.unflatten(-1, (left.shape[1], right.shape[1])), right.to(x.dtype))
        product = torch.einsum("ab,...bc->...ac", left.to(x.dtype), inner).flatten(-2)
        (out.narrow(-1, start, length) if dim == 0 else out).add_(product)
    if plan.dense:
        out += torch.nn.functional.linear(x, tensors["lora_delta"].to(x.device, x.dtype))
    return out


def _up(value: LoRAAdapter | LoHaAdapter, device: torch.device) -> Tensor:
    """(rows, rank) float32."""
    first, *second = (t.to(device).float().flatten(1) for t in up_tensors(value))
    return (first[:, :, None] * second[0][:, None, :]).flatten(1) if second else first


def _down(value: LoRAAdapter | LoHaAdapter, device: torch.device) -> Tensor:
    """(rank, columns) float32."""
    first, *second = (t.to(device).float().flatten(1) for t in down_tensors(value))
    return (first[:, None, :] * second[0][None, :, :]).flatten(0, 1) if second else first
