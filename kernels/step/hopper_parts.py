"""Pieces of gemm_w4a8_hopper: how the result of a part of a tile leaves, and the descriptors of what is copied."""

from functools import cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..numerics import gelu_tanh

# names that Triton 3.9 changed
load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

_gelu_tanh = gluon.jit(gelu_tanh.fn)  # pyright: ignore[reportFunctionMemberAccess]  same source, compiled by Gluon


@gluon.jit
def fetch(out_desc, start_m, start_n, staging, fetched):
    """Start copying what the result holds into staging, as soon as the last store has read that."""
    tma.store_wait(0)
    mbarrier.expect(fetched, out_desc.block_type.nbytes)
    load(out_desc, [start_m, start_n], fetched, staging)


@gluon.jit
def finish_part(
    out, start_m, start_n, staging, fetched, PHASE: gl.constexpr, gelu_from, out_desc, ACCUMULATE: gl.constexpr,
    GELU: gl.constexpr,
):  # fmt: skip
    """Add what was fetched in this phase of the barrier, apply the GELU and start the store of one part."""
    if ACCUMULATE:
        mbarrier.wait(fetched, PHASE)
        out += staging.load(out.type.layout).to(gl.float32)
    if GELU:  # noqa: SIM102  (the compiler decides the first, each part the second)
        if start_n >= gelu_from:
            out = _gelu_tanh(out.to(out_desc.dtype), True)
    tma.store_wait(0)
    staging.store(out.to(out_desc.dtype))
    fence_async_shared()
    _store(out_desc, [start_m, start_n], staging)


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
