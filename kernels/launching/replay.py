"""Calls recorded once and issued again by address.

A quantized layer is a few kernel launches. Making views of its tensors and finding tiles and compiled kernels again in
every step takes longer on the CPU than the kernels take on the GPU. So the first call in a situation runs as usual and
leaves a recording: which compiled kernels ran, and which of their arguments were addresses, inside which of the
caller's tensors, of the result, or of scratch memory. Later calls allocate twice, put addresses in, and launch.

Some of torch's operations that write where they are told, such as matrix products with `out`, are part of a recording:
they are called again with tensors made at the new addresses. A call that does anything else leaves none and always runs
as usual. SVDQUANT_REPLAY=0 records nothing.
"""

import copy
import os
import threading
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ladder import logger, say_once, steps_left_behind
from .recording import Launch, Recorder, Write, is_recording

SWITCH = "SVDQUANT_REPLAY"  # environment: 0 records nothing
ALIGNMENT = 16  # bytes; kernels are compiled for pointers that are multiples of it
SCRATCH_ALIGNMENT = 256  # bytes, as torch's allocator gives them out
ATTEMPTS = 3  # calls in one situation that may leave no recording: first ones also check kernels and step down ladders
# Calls that run as usual after a recorded one found no memory: each try has the allocator give back its whole cache.
PAUSE = 200
LARGEST_COUNT = 1024  # recordings kept by a thread


Result = Tensor | tuple[Tensor, ...]  # of a call


class _Thread(threading.local):
    def __init__(self):
        self.known: dict[Hashable, Replay | int] = {}  # by situation; a number counts attempts that left no recording


_thread = _Thread()
_refused: list[str] = []  # what this Triton said when its compiled kernels could not be launched like this


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element of a tensor to behind its last."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size() if tensor.numel() else 0


class _Places:
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


class _PlacedLaunch:
    """A launch to be issued for tensors elsewhere."""

    def __init__(self, launch: Launch, places: _Places):
        compiled, self._grid, arguments, constants = launch
        self._run, self._function, self._packed = compiled.run, compiled.function, compiled.packed_metadata
        self._values, self._pointers, self._descriptors = [*arguments, *constants], [], []
        for i, argument in enumerate(arguments):
            if isinstance(argument, Tensor):
                self._values[i] = 0
                if argument.data_ptr():
                    self._pointers.append((i, *places.of(argument)))
            elif argument is not None and not isinstance(argument, int):
                self._values[i] = copy.copy(argument)
                place = places.of(argument.base)
                self._values[i].base = _Address()
                self._descriptors.append((self._values[i].base, *place))

    def issue(self, _tensors: Sequence[Tensor | None], bases: list[int], stream: int) -> None:
        values = self._values
        for i, source, offset in self._pointers:
            values[i] = bases[source] + offset
        for address, source, offset in self._descriptors:
            address.value = bases[source] + offset
        self._run(*self._grid, stream, self._function, self._packed, None, None, None, *values)


class _PlacedWrite:
    """A write to be issued for tensors elsewhere."""

    def __init__(self, write: Write, places: _Places):
        self._function = write.function
        self._arguments, self._options = list(write.arguments), dict(write.options)
        self._tensors = []
        for target in (self._arguments, self._options):
            for key in list(target) if isinstance(target, dict) else range(len(target)):
                tensor = target[key]
                if isinstance(tensor, Tensor):
                    source, offset = places.of(tensor)
                    form = tensor.dtype, tensor.element_size(), tensor.shape, tensor.stride()
                    self._tensors.append((target, key, source, offset, form))
                    target[key] = None  # or the recording would keep its memory

    def issue(self, tensors: Sequence[Tensor | None], _bases: list[int], _stream: int) -> None:
        try:
            for target, key, source, offset, form in self._tensors:
                target[key] = _tensor_at(tensors[source], offset, *form)
            self._function(*self._arguments, **self._options)
        finally:
            for target, key, *_ in self._tensors:
                target[key] = None


def _tensor_at(base: Tensor | None, offset: int, dtype: torch.dtype, width: int, shape, stride) -> Tensor:
    """A tensor that begins `offset` bytes behind the first element of another; width: bytes of an element."""
    assert base is not None, "what was None when the call was recorded held no tensor"
    start = (base.storage_offset() * base.element_size() + offset) // width
    return torch.empty(0, dtype=dtype, device=base.device).set_(base.untyped_storage(), start, shape, stride)


class Replay:
    """What one call did, ready to be done for other addresses.

    Args:
        recorder: what the call did. sources: the tensors that it read, or None. out: its result, or several.

    Raises:
        LookupError: it used a tensor that it neither was given nor allocated.
    """

    def __init__(self, recorder: Recorder, sources: Sequence[Tensor | None], out: Result):
        self.is_one = isinstance(out, Tensor)
        outs = (out,) if isinstance(out, Tensor) else out
        self.forms, self.device = [(t.shape, t.dtype) for t in outs], outs[0].device
        places = _Places(recorder, (*sources, *outs))
        placed = {Launch: _PlacedLaunch, Write: _PlacedWrite}
        self.steps = [placed[type(step)](step, places) for step in recorder.steps]
        self.scratch_bytes = places.scratch_bytes
        self.pause = 0  # calls that run as usual, after memory ran out

    def __call__(self, sources: Sequence[Tensor | None]) -> Result | None:
        """The result for other tensors of the same shapes and strides; None where addresses do not allow it."""
        outs = tuple([torch.empty(shape, dtype=dtype, device=self.device) for shape, dtype in self.forms])
        scratch = torch.empty(self.scratch_bytes, dtype=torch.uint8, device=self.device)
        tensors = (*sources, *outs, scratch)
        bases = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        for base in bases:
            if base % ALIGNMENT:
                return None
        stream = current_stream(self.device.index)
        for step in self.steps:
            step.issue(tensors, bases, stream)
        return outs[0] if self.is_one else outs


def current_stream(index: int) -> int:
    """Handle of the stream that torch uses on a GPU."""
    return torch._C._cuda_getCurrentRawStream(index)


class Call:
    """A call that runs as usual within this context, which takes its result and perhaps leaves a recording.

    Args:
        key: of the situation, if the call is to be recorded. sources: every tensor that it reads.
    """

    __slots__ = ("_failed_before", "_key", "_recorder", "_sources", "result")

    result: Result  # new contiguous tensors; to be set within the context, and nothing else is to be kept

    def __init__(self, key: Hashable | None, sources: Sequence[Tensor | None]):
        self._key, self._sources = key, sources
        self._recorder: Recorder | None = None

    def __enter__(self) -> "Call":
        if self._key is not None:
            self._failed_before = steps_left_behind()
            self._recorder = Recorder()
            self._recorder.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        recorder.__exit__(*exception)
        if exception[0] is None:
            self._keep(recorder)

    def _keep(self, recorder: Recorder) -> None:
        known, out = _thread.known, self.result
        outs = (out,) if isinstance(out, Tensor) else out
        if len(known) >= LARGEST_COUNT:
            known.clear()
        aligned = all(t is None or t.data_ptr() % ALIGNMENT == 0 for t in (*self._sources, *outs))
        made = all(recorder.made(t) for t in outs)
        usable = recorder.complete and aligned and made and self._failed_before == steps_left_behind()
        attempts = known.get(self._key, 0)
        assert isinstance(attempts, int), "what has a recording is not recorded again"
        try:
            known[self._key] = Replay(recorder, self._sources, out) if usable else attempts + 1
        except LookupError as error:
            logger.debug("A call cannot be issued again by address: %s", error)
            known[self._key] = attempts + 1


def replay(situation: Hashable, sources: Sequence[Tensor | None]) -> Result | Call:
    """The result of a call that was recorded in this situation, by the same launches; else a context to run it in.

    Args:
        situation: all that decides what the call does, beside shapes, strides and dtypes of its tensors.
        sources: every tensor that the call reads, on the device of the first; none of them overlap.
    """
    first = sources[0]
    if _refused or first is None or not records_on(first.device):
        return Call(None, sources)
    key = (situation, first.device, *(None if t is None else (t.dtype, t.shape, t.stride()) for t in sources))
    known = _thread.known
    found = known.get(key, 0)
    if isinstance(found, Replay) and found.pause:
        found.pause -= 1
        return Call(None, sources)
    if not isinstance(found, Replay):
        return Call(None if found >= ATTEMPTS or is_recording() else key, sources)
    try:
        out = found(sources)
    except torch.cuda.OutOfMemoryError:  # scratch is in one piece; as usual, one part is freed before the next
        found.pause, out = PAUSE, None
    except RuntimeError as error:  # of one of torch's operations; whether it comes again, running it will show
        logger.debug("A recorded call failed: %s", error)
        known[key], out = ATTEMPTS, None
    except Exception as error:  # noqa: BLE001  (an older or newer Triton may refuse in any way)
        _refused.append(str(error))
        say_once("Layers are launched the ordinary way, which takes longer: %s", error)
        out = None
    return Call(None, sources) if out is None else out


def records_on(device: torch.device) -> bool:
    """Whether calls on a device are recorded: on the current GPU, unless switched off."""
    if device.type != "cuda" or os.environ.get(SWITCH) == "0":
        return False
    return device.index == torch.cuda.current_device()
