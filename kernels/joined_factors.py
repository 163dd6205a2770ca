"""The low-rank branch of a call: the part's own factors with those of its LoRAs behind them."""

import torch
from torch import Tensor

from .format import RANK_MULTIPLE
from .gpus import why_no_triton
from .ladder import descend
from .layer_call import Factors


def _append(factors: Tensor, lora: Tensor) -> Tensor:
    """(A, R) and (A, r) -> (A, R + r), with columns of zeros up to a multiple of RANK_MULTIPLE."""
    padding = lora.new_zeros((lora.shape[0], -(factors.shape[1] + lora.shape[1]) % RANK_MULTIPLE))
    return torch.cat((factors.to(lora.dtype), lora, padding), dim=1)


def branch_of(own: Factors | None, lora: Factors | None) -> Factors | None:
    """Both as one branch, of a rank that is a multiple of RANK_MULTIPLE; None if there is none.

    Args:
        own: of the part. lora: of its LoRAs, strength included, unit stride along their rank.
    """
    if own is None or lora is None:
        return own if lora is None else lora

    def in_torch() -> Factors:
        return Factors(_append(own.down, lora.down), _append(own.up, lora.up))

    def in_kernel() -> Factors:
        from .step.join_factors import join_factors

        return Factors(*join_factors(own.down, lora.down, own.up, lora.up))

    read = (*own, *lora)
    if why_no_triton(lora.down.device) or (torch.is_grad_enabled() and any(t.requires_grad for t in read)):
        return in_torch()
    steps = [("factors joined by a kernel", in_kernel), ("factors joined in plain torch", in_torch)]
    return descend(lora.down.device, steps)
