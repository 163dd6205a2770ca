"""Calls recorded once and issued again by address.

A quantized layer is a few kernel launches. Making views of its tensors and finding tiles and compiled kernels again in
every step takes longer on the CPU than the kernels take on the GPU. So the first call in a situation runs as usual and
leaves a recording: which compiled kernels ran, and which of their arguments were addresses, inside which of the
caller's tensors, of the result, or of scratch memory. Later calls allocate twice, put addresses in, and launch.

Some of torch's operations that write where they are told, such as matrix products with `out`, are part of a recording:
they are called again with tensors made at the new addresses. A call that does anything else leaves none and always runs
as usual. SVDQUANT_REPLAY=0 records nothing.
"""

import os
import threading
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..ladder import logger, say_once, steps_left_behind
from .placed import PlacedLaunch, PlacedWrite, Places
from .recording import Launch, Recorder, Write, is_recording

SWITCH = "SVDQUANT_REPLAY"  # environment: 0 records nothing
ALIGNMENT = 16  # bytes; kernels are compiled for pointers that are multiples of it
ATTEMPTS = 3  # calls in one situation that may leave no recording: first ones also check kernels and step down ladders
# Calls that run as usual after a recorded one found no memory: each try has the allocator give back its whole cache.
PAUSE = 200
LARGEST_COUNT = 1024  # recordings kept by a thread
RECORDS = os.environ.get(SWITCH) != "0"  # asked once: to look takes as long as a tensor


Result = Tensor | tuple[Tensor, ...]  # of a call


class _ThreadReplays(threading.local):
    def __init__(self):
        self.known: dict[Hashable, Replay | int] = {}  # by situation; a number counts attempts that left no recording


_thread = _ThreadReplays()
_refused: list[str] = []  # what this Triton said when its compiled kernels could not be launched like this


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
        self.device = outs[0].device
        places = Places(recorder, (*sources, *outs))
        placed = {Launch: PlacedLaunch, Write: PlacedWrite}
        self.steps = [placed[type(step)](step, places) for step in recorder.steps]
        self._outs = [_form(t.device, t.dtype, t.shape) for t in outs]
        self._scratch = _form(self.device, torch.uint8, (places.scratch_bytes,))
        self.pause = 0  # calls that run as usual, after memory ran out

    def __call__(self, sources: Sequence[Tensor | None]) -> Result | None:
        """The result for other tensors of the same shapes and strides; None where addresses do not allow it."""
        outs = [torch.empty_like(form, memory_format=torch.contiguous_format) for form in self._outs]
        scratch = torch.empty_like(self._scratch, memory_format=torch.contiguous_format)
        tensors = (*sources, *outs, scratch)
        bases = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        for base in bases:
            if base % ALIGNMENT:
                return None
        stream = current_stream(self.device.index)
        for step in self.steps:
            step.issue(tensors, bases, stream)
        return outs[0] if self.is_one else tuple(outs)


@cache
def _element(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty(1, dtype=dtype, device=device)


def _form(device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A tensor without memory of its own: torch makes another like it in a fifth of the time that it takes by words."""
    return _element(device, dtype).expand(tuple(shape))


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
    return RECORDS and device.type == "cuda" and device.index == torch.cuda.current_device()
