"""Steps of a recorded call, to be issued for tensors that lie elsewhere."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .descriptors import unwrap
from .recording import Launch, Recorder, Write

SCRATCH_ALIGNMENT = 256  # bytes, as torch's allocator gives them out
LARGEST_MAPS = 64  # addresses for which a descriptor is kept made; allocators give out few in turn


class Form(NamedTuple):
    """What a tensor is but for its place; width: bytes of an element."""

    dtype: torch.dtype
    width: int
    shape: torch.Size
    stride: tuple[int, ...]


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element of a tensor to behind its last."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size() if tensor.numel() else 0


class Places:
    """Where the tensors of a call lie.

    Args:
        recorder: what the call did. given: the tensors that it read, or None, and its result.
    """

    def __init__(self, recorder: Recorder, given: Sequence[Tensor | None]):
        self._spans = [(0, 0) if t is None else (t.data_ptr(), _extent(t)) for t in given]
        self._allocated = recorder.allocated
        self._scratch: dict[int, int] = {}  # address of a storage -> offset in the scratch memory
        self.scratch_bytes = 0

    def of(self, tensor: Tensor) -> tuple[int, int]:
        """(index of what was given, or behind them scratch; bytes from there to the tensor's first element).

        Raises:
            LookupError: the tensor comes from elsewhere.
        """
        address = tensor.data_ptr()
        around = [(start, i) for i, (start, extent) in enumerate(self._spans) if start <= address < start + extent]
        if around:  # rows that are apart may have another tensor between them: it is the one that begins last
            start, i = max(around)
            return i, address - start
        storage = tensor.untyped_storage()
        base = storage.data_ptr()
        if base not in self._allocated:
            raise LookupError(f"a tensor of {tuple(tensor.shape)} that the call neither was given nor allocated")
        if base not in self._scratch:
            self._scratch[base] = self.scratch_bytes
            self.scratch_bytes += -(-storage.nbytes() // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
        return len(self._spans), self._scratch[base] + address - base


class _Address:
    """Stands for a tensor in a descriptor."""

    __slots__ = ("value",)

    def data_ptr(self) -> int:
        return self.value


class PlacedLaunch:
    """A launch to be issued for tensors elsewhere.

    Triton makes every descriptor anew in Python at each launch, which takes longer than the launch. Here each is kept
    as it was made for an address, and Triton's own launcher gets what its wrapper would have made of it.
    """

    def __init__(self, launch: Launch, places: Places):
        compiled, self._grid, arguments, constants = launch
        self._run, self._function, self._packed = compiled.run, compiled.function, compiled.packed_metadata
        described = [a for a in arguments if a is not None and not isinstance(a, (Tensor, int))]
        unwrapped = unwrap(compiled.run, len(described)) if described else None
        if unwrapped is not None:
            self._run = unwrapped.run
        self._values, self._pointers, self._descriptors, self._maps = [], [], [], []
        for argument in arguments:
            i = len(self._values)
            if isinstance(argument, Tensor):
                self._values.append(0)
                if argument.data_ptr():
                    self._pointers.append((i, *places.of(argument)))
            elif argument is None or isinstance(argument, int):
                self._values.append(argument)
            else:
                elsewhere = copy.copy(argument)
                elsewhere.base = _Address()
                place = places.of(argument.base)
                if unwrapped is None:
                    self._values.append(elsewhere)
                    self._descriptors.append((elsewhere.base, *place))
                else:
                    make = unwrapped.maker(len(self._maps), elsewhere)
                    elsewhere.base.value = here = argument.base.data_ptr()
                    made = make()
                    self._values += made
                    self._maps.append((slice(i, i + len(made)), *place, elsewhere.base, make, {here: made}))
        self._values += constants

    def issue(self, _tensors: Sequence[Tensor | None], bases: list[int], stream: int) -> None:
        values = self._values
        for i, source, offset in self._pointers:
            values[i] = bases[source] + offset
        for address, source, offset in self._descriptors:
            address.value = bases[source] + offset
        for span, source, offset, address, make, known in self._maps:
            place = bases[source] + offset
            made = known.get(place)
            if made is None:
                if len(known) >= LARGEST_MAPS:
                    known.clear()
                address.value = place
                made = known[place] = make()
            values[span] = made
        self._run(*self._grid, stream, self._function, self._packed, None, None, None, *values)


class PlacedWrite:
    """A write to be issued for tensors elsewhere."""

    def __init__(self, write: Write, places: Places):
        self._function = write.function
        self._arguments, self._options = list(write.arguments), dict(write.options)
        self._tensors = []
        for target in (self._arguments, self._options):
            for key in list(target) if isinstance(target, dict) else range(len(target)):
                tensor = target[key]
                if isinstance(tensor, Tensor):
                    source, offset = places.of(tensor)
                    form = Form(tensor.dtype, tensor.element_size(), tensor.shape, tensor.stride())
                    self._tensors.append((target, key, source, offset, form))
                    target[key] = None  # or the recording would keep its memory

    def issue(self, tensors: Sequence[Tensor | None], _bases: list[int], _stream: int) -> None:
        try:
            for target, key, source, offset, form in self._tensors:
                target[key] = _tensor_at(tensors[source], offset, form)
            self._function(*self._arguments, **self._options)
        finally:
            for target, key, *_ in self._tensors:
                target[key] = None


def _tensor_at(base: Tensor | None, offset: int, form: Form) -> Tensor:
    """A tensor that begins `offset` bytes behind the first element of another."""
    dtype, width, shape, stride = form
    assert base is not None, "what was None when the call was recorded held no tensor"
    start = (base.storage_offset() * base.element_size() + offset) // width
    return torch.empty(0, dtype=dtype, device=base.device).set_(base.untyped_storage(), start, shape, stride)
