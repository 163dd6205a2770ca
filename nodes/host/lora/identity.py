"""Which patches are the same, told by their content: two loaders may read one file, each for itself.

A tensor is known by a digest of its bits, which is worked out once and lies on the tensor. Nothing is kept of tensors
that are gone, and no old tensor is read again to be compared with a new one: the host maps LoRA files, and a file that
a trainer has saved over in place is no longer there to be read.
"""

import hashlib
from collections.abc import Hashable, Iterator

import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ..model.dense_view import DenseView

# Larger ones are known by the object that they are: factors of LoRAs are far smaller, and a dense difference of a whole
# model would take a minute to digest. So are views of packed weights.
LARGEST_DIGESTED = 64 << 20  # bytes


class _Unique:
    """What a large tensor is known by; compared by identity."""


def content_of(tensor: Tensor) -> Hashable:
    """Equal for two tensors exactly if they hold the same bits in the same shape and dtype; holds no tensor alive."""
    token = getattr(tensor, "svdquant_content", None)
    if token is None:
        large = isinstance(tensor, DenseView) or tensor.nbytes > LARGEST_DIGESTED
        token = _Unique() if large else _digest(tensor)
        tensor.svdquant_content = token
    return token


def _digest(tensor: Tensor) -> Hashable:
    bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
    digest = hashlib.sha256(bits.numpy().data).digest()
    return tuple(tensor.shape), tensor.dtype, tensor.device, digest


def has_values(tensor: Tensor) -> bool:
    """Whether it is an ordinary tensor: neither sparse nor without memory."""
    return isinstance(tensor, DenseView) or (tensor.layout == torch.strided and not tensor.is_meta)


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; worked out once for each tensor."""
    if isinstance(tensor, DenseView):  # of a layer whose tensors were checked when its file was read
        return True
    known = getattr(tensor, "svdquant_finite", None)
    if known is None:
        known = True
        if tensor.is_floating_point() and tensor.numel():
            values = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()
            known = bool(torch.isfinite(torch.stack(torch.aminmax(values)).float()).all())
        tensor.svdquant_finite = known
    return known


def tensors_in(value) -> Iterator[Tensor]:
    """The tensors of a patch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, WeightAdapterBase):
        yield from tensors_in(value.weights)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def identity_of(value) -> Hashable:
    """Equal for patches that do the same, different for all others; holds no tensor alive."""
    if isinstance(value, Tensor):
        return content_of(value)
    if isinstance(value, WeightAdapterBase):
        return type(value), identity_of(value.weights)
    if isinstance(value, (tuple, list)):
        return type(value), *(identity_of(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, identity_of(item)) for name, item in sorted(value.items()))
    return value


def signature_of(patches: list[tuple]) -> tuple:
    """Equal for lists of patches that do the same."""
    return tuple((s, identity_of(value), model, offset, function) for s, value, model, offset, function in patches)
