"""Tensors of a file that are read when their values are asked for: ComfyUI's detection asks for names and shapes only.

What ComfyUI does to them on the way (slices, joins, permutes, renames) is noted, and done when a value is read. So is,
within `Joining`, what it writes into memory that it has made (diffusers' names of Stable Diffusion 3 and AuraFlow).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ....svdq_core.errors import CheckpointError

VIEWS = ("narrow", "__getitem__")  # of which ComfyUI writes into
READING = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__")  # ask for values at once


class Insertion(NamedTuple):
    """Values that go to a part of a tensor: its sizes, strides and first element there."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    value: Any


class Values(NamedTuple):
    """How a tensor's values came about so far: what made them, and what was written into it since."""

    make: Callable[[], Tensor]
    writes: tuple[Insertion, ...]

    def read(self) -> Tensor:
        made = self.make()
        if self.writes:
            made = made.clone(memory_format=torch.contiguous_format)
        for write in self.writes:
            made.as_strided(write.shape, write.stride, write.start).copy_(_read(write.value))
        return made


class LazyTensor(Tensor):
    """A tensor without memory that knows how its values come about.

    Attributes:
        make: makes them. writes: what was written into it since. root: the tensor that this one is a view of, or None.
    """

    make: Callable[[], Tensor]
    writes: list[Insertion]
    root: "LazyTensor | None"

    @staticmethod
    def of(shape: tuple[int, ...], dtype: torch.dtype, make: Callable[[], Tensor]) -> "LazyTensor":
        """A tensor of this shape, whose values `make` reads."""
        return LazyTensor._wrap(torch.empty(shape, dtype=dtype, device="meta"), make)

    @staticmethod
    def _wrap(bare: Tensor, make: Callable[[], Tensor]) -> "LazyTensor":
        made = bare.as_subclass(LazyTensor)
        made.make, made.writes, made.root = make, [], None
        return made

    @property
    def written(self) -> Values:
        """As they are now."""
        return Values(self.make, tuple(self.writes))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in READING:
            return func(*_each(args, _read), **_each(kwargs, _read))
        if name == "__setitem__" and isinstance(args[0], LazyTensor):
            return _note_write(*args)
        if name in ("__setitem__", "copy_", "fill_"):
            raise CheckpointError(
                "ComfyUI writes tensors of this file into memory while it loads them, which would need all of it. Load "
                "it with Load Diffusion Model and use Quantize Model."
            )
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*_each(args, _bare), **_each(kwargs, _bare))
        then, named = _each(args, _as_now), _each(kwargs, _as_now)  # what is written into them later is not read here
        if isinstance(out, Tensor) and not isinstance(out, LazyTensor):
            made = cls._wrap(out, lambda: func(*_each(then, _read), **_each(named, _read)))
            if name in VIEWS and isinstance(args[0], LazyTensor):
                made.root = args[0] if args[0].root is None else args[0].root
            return made
        if isinstance(out, (tuple, list)) and any(isinstance(o, Tensor) for o in out):
            return type(out)(
                cls._wrap(o, lambda i=i: func(*_each(then, _read), **_each(named, _read))[i]) for i, o in enumerate(out)
            )
        return out


class Joining(TorchFunctionMode):
    """Within, memory without values that is asked for is a tensor to be written into."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.empty and out.is_meta:
            shape, dtype = out.shape, out.dtype
            return LazyTensor._wrap(out, lambda: torch.empty(shape, dtype=dtype))
        return out


def _note_write(target: LazyTensor, index: Any, value: Any) -> None:
    root = target if target.root is None else target.root
    with torch._C.DisableTorchFunctionSubclass():
        place = target.as_subclass(Tensor)[index]
    values = value.expand(place.shape) if isinstance(value, LazyTensor) and value.shape != place.shape else value
    root.writes.append(Insertion(tuple(place.shape), place.stride(), int(place.storage_offset()), _as_now(values)))


class LazyWeights(Mapping[str, Tensor]):
    """Tensors by name; each is read anew whenever it is asked for.

    Args:
        lazy: name -> tensor.
    """

    reads_file = True  # by any thread

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


def _as_now(value: Any) -> Any:
    return value.written if isinstance(value, LazyTensor) else value


def _read(value: Any) -> Any:
    return (_as_now(value)).read() if isinstance(value, (LazyTensor, Values)) else value


def _bare(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, LazyTensor) else value


def _each(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _each(item, function) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_each(item, function) for item in value)
    return function(value)
