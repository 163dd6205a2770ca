"""Calls recorded once and issued again by address.

A quantized layer is a few kernel launches. Making views of its tensors and finding tiles and compiled kernels again in
every step takes longer on the CPU than the kernels take on the GPU. So the first call in a situation runs as usual and
leaves a recording: which compiled kernels ran, and which of their arguments were addresses, inside which of the
caller's tensors, of the result, or of scratch memory. Later calls allocate twice, put addresses in, and launch.

A call that computes anything beside kernels of ours (a matrix product of torch's, say) leaves no recording and always
runs as usual. SVDQUANT_REPLAY=0 records nothing.
"""

import copy
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .ladder import logger, say_once, steps_left_behind

SWITCH = "SVDQUANT_REPLAY"  # environment: 0 records nothing
ALIGNMENT = 16  # bytes; kernels are compiled for pointers that are multiples of it
SCRATCH_ALIGNMENT = 256  # bytes, as torch's allocator gives them out
ATTEMPTS = 3  # calls in one situation that may leave no recording: first ones also check kernels and step down ladders
LARGEST_COUNT = 1024  # recordings kept by a thread

# operations that allocate and compute nothing
_ALLOCATIONS = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")


class _Thread(threading.local):
    """What belongs to one thread: the recording under way, and recordings by situation."""

    def __init__(self):
        self.recorder: Recorder | None = None
        self.known: dict[Hashable, Replay | int] = {}  # a number counts attempts that left none


_thread = _Thread()
_refused: list[str] = []  # what this Triton said when its compiled kernels could not be launched like this


class Recorder(TorchDispatchMode):
    """Notes launches while it is entered, and whether anything else was computed."""

    def __init__(self):
        super().__init__()
        self.launches: list[tuple[Any, tuple[int, ...], tuple, tuple]] = []
        self.complete = True

    def __enter__(self):
        _thread.recorder = self
        return super().__enter__()

    def __exit__(self, *exception):
        _thread.recorder = None
        return super().__exit__(*exception)

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        if name not in _ALLOCATIONS and (function._schema.is_mutable or not _is_view(result, args)):
            logger.debug("%s cannot be issued again by address", name)
            self.complete = False
        return result


def note_launch(compiled: Any | None, grid: tuple[int, ...], arguments: tuple, constants: tuple) -> None:
    """Tell the recording under way, if there is one, of a launch.

    Args:
        compiled: Triton's compiled kernel, or None for a launch that cannot be repeated by address.
        grid: three sizes. arguments: tensors, descriptors, numbers and None; constants: what follows them.
    """
    recorder = _thread.recorder
    if recorder is None:
        return
    if compiled is None:
        recorder.complete = False
    else:
        recorder.launches.append((compiled, grid, arguments, constants))


def _is_view(result: Any, arguments: tuple) -> bool:
    """Whether an operation only looked at its first argument's memory."""
    results = result if isinstance(result, (tuple, list)) else (result,)
    source = arguments[0] if arguments else None
    return isinstance(source, Tensor) and all(
        isinstance(t, Tensor) and t.untyped_storage().data_ptr() == source.untyped_storage().data_ptr() for t in results
    )


class _Address:
    """Stands for a tensor in a descriptor."""

    __slots__ = ("value",)

    def data_ptr(self) -> int:
        return self.value


def _extent(tensor: Tensor) -> int:
    """Bytes from the first element of a tensor to behind its last."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size() if tensor.numel() else 0


class Replay:
    """The launches of one call, ready to be issued for other addresses.

    Args:
        recorder: what the call did. sources: the tensors that it read, or None. out: its result.
    """

    def __init__(self, recorder: Recorder, sources: Sequence[Tensor | None], out: Tensor):
        self.shape, self.dtype, self.device = out.shape, out.dtype, out.device
        spans = [(0, 0) if t is None else (t.data_ptr(), _extent(t)) for t in (*sources, out)]
        self._scratch: dict[int, int] = {}  # address of a storage -> offset in the scratch memory
        self.scratch_bytes = 0
        self.launches = []
        for compiled, grid, arguments, constants in recorder.launches:
            values, pointers, descriptors = [*arguments, *constants], [], []
            for i, argument in enumerate(arguments):
                if isinstance(argument, Tensor):
                    values[i] = 0
                    if argument.data_ptr():
                        pointers.append((i, *self._locate(argument, spans)))
                elif argument is not None and not isinstance(argument, int):
                    values[i] = copy.copy(argument)
                    place = self._locate(argument.base, spans)
                    values[i].base = _Address()
                    descriptors.append((values[i].base, *place))
            run, function, packed = compiled.run, compiled.function, compiled.packed_metadata
            self.launches.append((run, grid, function, packed, values, pointers, descriptors))

    def _locate(self, tensor: Tensor, spans: list[tuple[int, int]]) -> tuple[int, int]:
        """(index of source, result or scratch, offset in it) of a tensor's first element."""
        address = tensor.data_ptr()
        for i, (start, extent) in enumerate(spans):
            if start <= address < start + extent:
                return i, address - start
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._scratch:
            self._scratch[storage.data_ptr()] = self.scratch_bytes
            self.scratch_bytes += -(-storage.nbytes() // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
        return len(spans), self._scratch[storage.data_ptr()] + address - storage.data_ptr()

    def __call__(self, sources: Sequence[Tensor | None]) -> Tensor | None:
        """The result for other tensors of the same shapes and strides; None where addresses do not allow it."""
        out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        scratch = torch.empty(self.scratch_bytes, dtype=torch.uint8, device=self.device)
        bases = [0 if tensor is None else tensor.data_ptr() for tensor in (*sources, out, scratch)]
        for base in bases:
            if base % ALIGNMENT:
                return None
        stream = current_stream(self.device.index)
        for run, grid, function, packed, values, pointers, descriptors in self.launches:
            for i, source, offset in pointers:
                values[i] = bases[source] + offset
            for address, source, offset in descriptors:
                address.value = bases[source] + offset
            run(*grid, stream, function, packed, None, None, None, *values)
        return out


def current_stream(index: int) -> int:
    """Handle of the stream that torch uses on a GPU."""
    return torch._C._cuda_getCurrentRawStream(index)


def replayed(situation: Hashable, sources: Sequence[Tensor | None], compute: Callable[[], Tensor]) -> Tensor:
    """compute(), or the same launches by address if it was recorded in this situation.

    Args:
        situation: all that decides what compute() does, beside shapes, strides and dtypes of its tensors.
        sources: every tensor that compute() reads, the first on the device that runs it.
        compute: returns a new contiguous tensor, and keeps nothing.
    """
    first = sources[0]
    if _refused or first is None or not records_on(first.device):
        return compute()
    key = (situation, first.device, *(None if t is None else (t.dtype, t.shape, t.stride()) for t in sources))
    known = _thread.known
    found = known.get(key, 0)
    if isinstance(found, Replay):
        try:
            out = found(sources)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (an older or newer Triton may refuse in any way)
            _refused.append(str(error))
            say_once("Layers are launched the ordinary way, which takes longer: %s", error)
            out = None
        return compute() if out is None else out
    if found >= ATTEMPTS or _thread.recorder is not None:
        return compute()
    failed_before = steps_left_behind()
    with Recorder() as recorder:
        out = compute()
    if len(known) >= LARGEST_COUNT:
        known.clear()
    aligned = all(t is None or t.data_ptr() % ALIGNMENT == 0 for t in (*sources, out))
    usable = recorder.complete and aligned and out.is_contiguous() and failed_before == steps_left_behind()
    known[key] = Replay(recorder, sources, out) if usable else found + 1
    return out


def records_on(device: torch.device) -> bool:
    """Whether calls on a device are recorded: on the current GPU, unless switched off."""
    if device.type != "cuda" or os.environ.get(SWITCH) == "0":
        return False
    return device.index == torch.cuda.current_device()
