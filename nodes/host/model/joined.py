"""FLUX's single blocks join attention and MLP with torch.cat, and linear2 takes them apart again: it is not done.

Columns marks the MLP's columns, whose GELU linear1 has computed or linear2 will. torch.cat of them with others is put
off as a Joined, which SVDQuantLinear takes side by side. Any other operation of torch gets what torch.cat gives; what
asks for memory itself (data_ptr, numpy, deepcopy) finds none.
On an H200 the copy, and the GELU that it needed rows to be contiguous for, took 0.13 ms of a block of 4608 tokens.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Columns(Tensor):
    """An ordinary tensor but in torch.cat along the last dimension."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.cat and (joined := _put_off(*args, **(kwargs or {}))) is not None:
                return joined
            return func(*args, **(kwargs or {}))


class Joined(Tensor):
    """torch.cat(sides, dim=-1), not yet done.

    Args:
        sides: (..., K) each, equal but for K; nobody may write to them while the Joined is in use.
    """

    sides: tuple[Tensor, ...]

    @staticmethod
    def __new__(cls, sides: tuple[Tensor, ...]):
        shape = (*sides[0].shape[:-1], sum(side.shape[-1] for side in sides))
        return Tensor._make_wrapper_subclass(cls, shape, dtype=sides[0].dtype, device=sides[0].device)

    def __init__(self, sides: tuple[Tensor, ...]):
        self.sides = sides
        self._done: Tensor | None = None

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(Joined, Joined.done, (args, kwargs or {}))
        return func(*args, **kwargs)

    def done(self) -> Tensor:
        """The plain tensor; the same one every time, because somebody may write to it."""
        if self._done is None:
            self._done = torch.cat(self.sides, dim=-1)
        return self._done

    def cut_at(self, spans: Sequence[tuple[int, int]]) -> tuple[Tensor, ...] | Tensor:
        """The sides if they have just these columns, else the plain tensor."""
        edges = pairwise(accumulate((side.shape[-1] for side in self.sides), initial=0))
        return self.sides if self._done is None and list(edges) == list(spans) else self.done()


def _put_off(tensors: Sequence[Tensor], dim: int = 0, **more: object) -> Joined | None:
    """A Joined where torch.cat would give the same, else None."""
    if more or dim not in (-1, tensors[0].ndim - 1):
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return None
    like = {(t.shape[:-1], t.dtype, t.device) for t in tensors}
    if len(like) > 1 or any(isinstance(t, Joined) for t in tensors):
        return None
    return Joined(tuple(t.as_subclass(Tensor) for t in tensors))
