"""Tensors of a file that are read when their values are asked for: ComfyUI's detection asks for names and shapes only.

What ComfyUI does to them on the way (slices, joins, permutes, renames) is noted, and done when a value is read.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ....svdq_core.errors import CheckpointError

READING = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__")  # ask for values at once


class LazyTensor(Tensor):
    """A tensor without memory that knows how its values come about."""

    make: Callable[[], Tensor]

    @staticmethod
    def of(shape: tuple[int, ...], dtype: torch.dtype, make: Callable[[], Tensor]) -> "LazyTensor":
        """A tensor of this shape, whose values `make` reads."""
        return LazyTensor._wrap(torch.empty(shape, dtype=dtype, device="meta"), make)

    @staticmethod
    def _wrap(bare: Tensor, make: Callable[[], Tensor]) -> "LazyTensor":
        made = bare.as_subclass(LazyTensor)
        made.make = make
        return made

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in READING:
            return func(*_each(args, _read), **_each(kwargs, _read))
        if name in ("__setitem__", "copy_", "fill_"):
            raise CheckpointError(
                "The file has names of diffusers that ComfyUI joins while it loads. Take the file with ComfyUI's names."
            )
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*_each(args, _bare), **_each(kwargs, _bare))
        if isinstance(out, Tensor) and not isinstance(out, LazyTensor):
            return cls._wrap(out, lambda: func(*_each(args, _read), **_each(kwargs, _read)))
        if isinstance(out, (tuple, list)) and any(isinstance(o, Tensor) for o in out):
            return type(out)(
                cls._wrap(o, lambda i=i: func(*_each(args, _read), **_each(kwargs, _read))[i])
                for i, o in enumerate(out)
            )
        return out


class LazyWeights(Mapping[str, Tensor]):
    """Tensors by name; each is read anew whenever it is asked for.

    Args:
        lazy: name -> tensor.
    """

    def __init__(self, lazy: Mapping[str, LazyTensor]):
        self.lazy = dict(lazy)

    def __getitem__(self, name: str) -> Tensor:
        return _read(self.lazy[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.lazy)

    def __len__(self) -> int:
        return len(self.lazy)

    def __contains__(self, name: object) -> bool:
        return name in self.lazy

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading."""
        return tuple(self.lazy[name].shape)


def _read(value: Any) -> Any:
    return value.make() if isinstance(value, LazyTensor) else value


def _bare(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, LazyTensor) else value


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _each(item, function) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_each(item, function) for item in value)
    return function(value)
