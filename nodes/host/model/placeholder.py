"""Packed weights on their way into the host's model: a tensor that looks like the dense weight, and carries the blob.

The host reads families, sizes, parameter counts and dtypes off the tensors of a state dict: the shape of a block's
weight in Wan, LTX, SDXL, MiniMax H3 and others, the number of elements and the most frequent dtype in all. A
placeholder has the shape and dtype of the weight that the blob stands for, with all strides zero, so it takes no
memory. The blob is an attribute of it, not an entry beside it: that would be counted as parameters, and could be parted
from it where the host renames entries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ....svdq_core.blob import BlobLayout

_ATTRIBUTE = "svdq_packed"


@dataclass(frozen=True)
class Packed:
    """A layer's bytes, a flat uint8 tensor, and where what lies in them."""

    blob: Tensor
    layout: BlobLayout


def placeholder(packed: Packed, dtype: torch.dtype) -> Tensor:
    """What stands for (out_features, in_features) of that dtype in a state dict."""
    shape = packed.layout.out_features, packed.layout.in_features
    stand_in = torch.empty(1, dtype=dtype).expand(shape)
    setattr(stand_in, _ATTRIBUTE, packed)
    return stand_in


def packed_of(weight: Tensor) -> Packed | None:
    """The blob that an entry of a state dict stands for; None for an ordinary tensor."""
    return getattr(weight, _ATTRIBUTE, None)


def is_empty_shape(weight: Tensor) -> bool:
    """Whether a weight has no memory of its own: a placeholder, or what is left of one after the host has cut it."""
    return weight.ndim == 2 and weight.numel() > 1 and weight.stride() == (0, 0)
