"""Inputs that are no multiple of 64: a part's tensors then have columns of zeros behind its own, up to the next one.

Weights there are zero and so is what the activations are widened with, so the layer computes what the narrower one
would; a copy of the activations is what it costs. OmniGen 2 is 2520 wide and Boogu 3360.
"""

from torch import Tensor

from ..kernels.format import GROUP_SIZE_INT4


def padded(columns: int) -> int:
    """The number of columns that tensors have for so many inputs."""
    return columns + -columns % GROUP_SIZE_INT4


def widen(tensor: Tensor, size: int, dim: int) -> Tensor:
    """A tensor with zeros behind it up to a size along a dimension; itself if it has that size.

    Made of what a recording can do again by address, see kernels/launching/recording.py; autograd follows it.
    """
    own = tensor.shape[dim]
    if own == size:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = size
    wide = tensor.new_empty(shape)
    wide.narrow(dim, 0, own).copy_(tensor)
    wide.narrow(dim, own, size - own).zero_()
    return wide
