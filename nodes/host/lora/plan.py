"""What a MODEL's patches need on one SVDQuant layer, before any tensor of it is made.

Nothing is ever merged into the 4-bit codes. A LoRA becomes columns of low-rank factors that ride in the layer's
low-rank branch, which sees the activation before smoothing; a LoKr stays the Kronecker product of two small matrices; a
factor on the whole weight stays a number; what depends on the weight itself, or has no small form, becomes a dense
difference on that one layer. Patches on the bias become a difference that is added to it.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter
from torch import Tensor

from ....svdq_core.quantize.spec import RANK_MULTIPLE
from .identity import identity_of, signature_of
from .kron import kron_scale, kron_shapes
from .patches import combine, fold_scales, is_additive

# A LoHa of rank r is a low-rank difference of rank r * r; up to here its factors are smaller and faster than all of it.
LARGEST_LOHA_RANK = 256
BIAS_ITEMSIZE = 4  # bytes; the difference on a bias is float32 whatever the model computes in


@dataclass(frozen=True)
class Term:
    """factor * up, in some rows of the layer; strength and alpha are in the factor."""

    value: LoRAAdapter | LoHaAdapter
    factor: float
    offset: tuple | None

    @property
    def identity(self) -> Hashable:
        return self.factor, identity_of(up_tensors(self.value)), self.offset


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
        bias: patches on the layer's bias, in order.
        scale: what the layer's own weight is multiplied by; 1 where there are dense patches.
        signature: which patches it was made of.
    """

    blocks: tuple[Block, ...]
    krons: tuple[Kron, ...]
    dense: tuple[tuple, ...]
    bias: tuple[tuple, ...]
    scale: float
    signature: tuple

    @property
    def rank(self) -> int:
        """Columns of the factors, padding included."""
        rank = sum(block.rank for block in self.blocks)
        return rank + -rank % RANK_MULTIPLE

    @property
    def reads_input(self) -> bool:
        """Whether something is added that does not ride in the low-rank branch, and so reads the layer's input."""
        return bool(self.krons or self.dense) or self.scale != 1.0

    @property
    def has_bias(self) -> bool:
        """Whether something is added to the bias."""
        return bool(self.bias) or self.scale != 1.0

    def nbytes(self, in_features: int, out_features: int, itemsize: int) -> int:
        """What its tensors take, without making them."""
        count = self.rank * (in_features + out_features) + (in_features * out_features if self.dense else 0)
        count += sum(rows * columns for kron in self.krons for rows, columns in kron_shapes(kron.value))
        return itemsize * count + (BIAS_ITEMSIZE * out_features if self.has_bias else 0)


def plan_lora(patches: list[tuple], bias_patches: list[tuple] | None = None) -> LoraPlan | None:
    """How a layer takes these patches on its weight and on its bias; None if they come to nothing."""
    patches, bias = combine(patches), combine(bias_patches or [])
    if not patches and not bias:
        return None
    signature = signature_of(patches), signature_of(bias)
    scale, patches = fold_scales(patches)
    # what depends on the weight must see all that came before it
    last = max((i for i, patch in enumerate(patches) if not is_additive(patch)), default=-1)
    dense, blocks, krons = list(patches[: last + 1]), {}, []
    for patch in patches[last + 1 :]:
        strength, value, _, offset, _ = patch
        if isinstance(value, LoKrAdapter) and value.weights[7] is None:
            krons.append(Kron(value, strength * kron_scale(value), offset))
        elif _is_low_rank(value):
            if rank_of(value) == 0:
                continue
            rows = offset if offset is not None and offset[0] == 0 else None
            columns = offset if offset is not None and offset[0] == 1 else None
            identity = type(value), identity_of(down_tensors(value)), columns
            term = Term(value, strength * _scale(value), rows)
            blocks.setdefault(identity, []).append(term)
        else:
            dense.append(patch)
    found = tuple(Block(identity, rank_of(terms[0].value), tuple(terms)) for identity, terms in blocks.items())
    return LoraPlan(found, tuple(krons), tuple(dense), tuple(bias), scale, signature)


def up_tensors(value: LoRAAdapter | LoHaAdapter) -> tuple[Tensor, ...]:
    return value.weights[:1] if isinstance(value, LoRAAdapter) else (value.weights[0], value.weights[3])


def down_tensors(value: LoRAAdapter | LoHaAdapter) -> tuple[Tensor, ...]:
    return value.weights[1:2] if isinstance(value, LoRAAdapter) else (value.weights[1], value.weights[4])


def rank_of(value: LoRAAdapter | LoHaAdapter) -> int:
    """Rank of the difference that a LoRA or LoHa is."""
    return value.weights[1].shape[0] if isinstance(value, LoRAAdapter) else value.weights[1].shape[0] ** 2


def _is_low_rank(value) -> bool:
    if isinstance(value, LoRAAdapter):
        return value.weights[3] is None  # no middle factor
    return isinstance(value, LoHaAdapter) and value.weights[5] is None and rank_of(value) <= LARGEST_LOHA_RANK


def _scale(value: LoRAAdapter | LoHaAdapter) -> float:
    alpha, rank = value.weights[2], value.weights[1].shape[0]
    return 1.0 if alpha is None else float(alpha) / rank
