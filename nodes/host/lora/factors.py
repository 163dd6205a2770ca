"""From the host's patches on a weight to what an SVDQuant layer computes beside its own weight.

Nothing is ever merged into the 4-bit codes. A LoRA becomes columns of low-rank factors that ride in the layer's
low-rank branch, which sees the activation before smoothing; a LoKr stays the Kronecker product of two small matrices;
what depends on the weight itself, or has no small form, becomes a dense difference on that one layer.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import comfy.lora
import torch
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter
from torch import Tensor

from ....svdq_core.quantize.spec import RANK_MULTIPLE
from .patches import combine, identity_of, is_additive, kron_shapes, signature_of

# A LoHa of rank r is a low-rank difference of rank r * r; up to here its factors are smaller and faster than all of it.
LARGEST_LOHA_RANK = 256


@dataclass(frozen=True)
class Term:
    """factor * up, in some rows of the layer; strength and alpha are in the factor."""

    value: LoRAAdapter | LoHaAdapter
    factor: float
    offset: tuple | None

    @property
    def identity(self) -> Hashable:
        return self.factor, identity_of(_up_tensors(self.value)), self.offset


@dataclass(frozen=True)
class Block:
    """Some columns of the factors: one down-projection, and the terms that read it.

    Patches with the same down-projection share one: a fused q, k, v that a tool has split costs its rank once.
    """

    identity: tuple  # of the down-projection; its last item says which columns
    rank: int
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Kron:
    """A LoKr: factor * (left ⊗ right), in some rows or columns of the layer."""

    value: LoKrAdapter
    factor: float
    offset: tuple | None


@dataclass(frozen=True)
class LoraPlan:
    """What a list of patches needs on one layer; no tensors of its own.

    Args:
        blocks: columns of the factors, in order. krons: LoKrs.
        dense: patches that become one dense difference, in order.
        signature: which patches it was made of.
    """

    blocks: tuple[Block, ...]
    krons: tuple[Kron, ...]
    dense: tuple[tuple, ...]
    signature: tuple

    @property
    def rank(self) -> int:
        """Columns of the factors, padding included."""
        rank = sum(block.rank for block in self.blocks)
        return rank + -rank % RANK_MULTIPLE

    @property
    def reads_input(self) -> bool:
        """Whether something is added that does not ride in the low-rank branch, and so reads the layer's input."""
        return bool(self.krons or self.dense)

    def nbytes(self, in_features: int, out_features: int, itemsize: int) -> int:
        """What its tensors take, without making them."""
        count = self.rank * (in_features + out_features) + (in_features * out_features if self.dense else 0)
        count += sum(rows * columns for kron in self.krons for rows, columns in kron_shapes(kron.value))
        return itemsize * count


def plan_lora(patches: list[tuple]) -> LoraPlan | None:
    """How a layer takes these patches; None if they come to nothing."""
    patches = combine(patches)
    if not patches:
        return None
    # what depends on the weight must see all that came before it
    last = max((i for i, patch in enumerate(patches) if not is_additive(patch)), default=-1)
    dense, blocks, krons = list(patches[: last + 1]), {}, []
    for patch in patches[last + 1 :]:
        strength, value, _, offset, _ = patch
        if isinstance(value, LoKrAdapter) and value.weights[7] is None:
            krons.append(Kron(value, strength * _kron_scale(value), offset))
        elif _is_low_rank(value):
            rows = offset if offset is not None and offset[0] == 0 else None
            columns = offset if offset is not None and offset[0] == 1 else None
            identity = type(value), identity_of(_down_tensors(value)), columns
            term = Term(value, strength * _scale(value), rows)
            blocks.setdefault(identity, []).append(term)
        else:
            dense.append(patch)
    found = tuple(Block(identity, _rank(terms[0].value), tuple(terms)) for identity, terms in blocks.items())
    return LoraPlan(found, tuple(krons), tuple(dense), signature_of(patches))


def build_lora(
    plan: LoraPlan,
    dense_weight: Callable[[], Tensor],
    sizes: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
    old: LoraPlan | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    in_place: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a plan: lora_down (K, r), lora_up (N, r), lora_delta (N, K), lora_left<i>, lora_right<i>.

    Columns that a former plan has made already are taken over.

    Args:
        dense_weight: gives the layer's own weight, (N, K) float32, on the device; asked for dense differences only.
        sizes: (in_features, out_features). dtype: of the result.
        old, tensors: the former plan, and its tensors, which must be on the device with this dtype.
        in_place: the former tensors may be changed, which is enough where only strengths differ.
    """
    with torch.inference_mode():
        tensors = tensors or {}
        out = _build_factors(plan, sizes, device, dtype, old, tensors, in_place) if plan.blocks else {}
        for i, kron in enumerate(plan.krons):
            left, right = _kron_matrices(kron.value, device)
            out[f"lora_left{i}"], out[f"lora_right{i}"] = (left * kron.factor).to(dtype), right.to(dtype)
        if (
            plan.dense
            and old is not None
            and tensors
            and signature_of(list(old.dense)) == signature_of(list(plan.dense))
        ):
            out["lora_delta"] = tensors["lora_delta"]
        elif plan.dense:
            weight = dense_weight()
            patched = comfy.lora.calculate_weight(
                list(plan.dense), weight.clone(), "weight", original_weights={"weight": [(weight, None)]}
            )
            out["lora_delta"] = (patched - weight).to(dtype)
        return out


def _build_factors(
    plan: LoraPlan,
    sizes: tuple[int, int],
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


def add_lora(out: Tensor, x: Tensor, plan: LoraPlan, tensors: Mapping[str, Tensor]) -> Tensor:
    """Add what does not ride in the low-rank branch: LoKrs and the dense difference.

    Args:
        out: (..., N), changed in place. x: (..., K). tensors: those of build_lora, on x's device.
    """
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


def _is_low_rank(value) -> bool:
    if isinstance(value, LoRAAdapter):
        return value.weights[3] is None  # no middle factor
    return isinstance(value, LoHaAdapter) and value.weights[5] is None and _rank(value) <= LARGEST_LOHA_RANK


def _rank(value: LoRAAdapter | LoHaAdapter) -> int:
    return value.weights[1].shape[0] if isinstance(value, LoRAAdapter) else value.weights[1].shape[0] ** 2


def _scale(value: LoRAAdapter | LoHaAdapter) -> float:
    alpha, rank = value.weights[2], value.weights[1].shape[0]
    return 1.0 if alpha is None else alpha / rank


def _up_tensors(value: LoRAAdapter | LoHaAdapter) -> tuple[Tensor, ...]:
    return value.weights[:1] if isinstance(value, LoRAAdapter) else (value.weights[0], value.weights[3])


def _down_tensors(value: LoRAAdapter | LoHaAdapter) -> tuple[Tensor, ...]:
    return value.weights[1:2] if isinstance(value, LoRAAdapter) else (value.weights[1], value.weights[4])


def _up(value: LoRAAdapter | LoHaAdapter, device: torch.device) -> Tensor:
    """(rows, rank) float32."""
    first, *second = (t.to(device).float().flatten(1) for t in _up_tensors(value))
    return (first[:, :, None] * second[0][:, None, :]).flatten(1) if second else first


def _down(value: LoRAAdapter | LoHaAdapter, device: torch.device) -> Tensor:
    """(rank, columns) float32."""
    first, *second = (t.to(device).float().flatten(1) for t in _down_tensors(value))
    return (first[:, None, :] * second[0][None, :, :]).flatten(0, 1) if second else first


def _kron_matrices(value: LoKrAdapter, device: torch.device) -> tuple[Tensor, Tensor]:
    """left and right, float32."""
    left, right, _, *halves = (t.to(device).float() if isinstance(t, Tensor) else t for t in value.weights[:7])
    return halves[0] @ halves[1] if left is None else left, halves[2] @ halves[3] if right is None else right


def _kron_scale(value: LoKrAdapter) -> float:
    left, right, alpha, _, left_b, _, right_b = value.weights[:7]
    rank = right_b.shape[0] if right is None else left_b.shape[0] if left is None else None
    return 1.0 if alpha is None or rank is None else alpha / rank
