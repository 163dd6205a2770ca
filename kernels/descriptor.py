"""Tensor descriptors for Hopper's copy engine, made for every launch."""

from functools import cache

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


@cache
def _shared_layout(block: tuple[int, int], dtype: torch.dtype) -> gl.NVMMASharedLayout:
    name = {torch.int8: gl.int8, torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[dtype]
    return gl.NVMMASharedLayout.get_default_for(list(block), name)


class Descriptor(TensorDescriptor):
    """A TensorDescriptor without the checks of its dataclass, which take longer than the rest of a launch.

    Args:
        tensor: (rows, columns) int8, bfloat16 or float16, rows of whole 16 bytes.
        block: rows and columns of what is copied at a time.
    """

    def __init__(self, tensor: Tensor, *block: int):
        self.base, self.shape, self.strides = tensor, list(tensor.shape), list(tensor.stride())
        self.block_shape, self.layout, self.padding = list(block), _shared_layout(block, tensor.dtype), "zero"
