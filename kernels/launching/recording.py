"""What one call does, noted for replay.py: launches of compiled kernels, and torch's operations that write to tensors.

A recording is complete if the call did nothing else that computes. Views and allocations are no computation.
"""

import threading
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..ladder import logger

# operations that allocate and compute nothing
_ALLOCATIONS = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided")
# operations that write to a tensor they are given, and do nothing else
_WRITES = (
    *("aten::mm.out", "aten::addmm.out", "aten::_int_mm.out", "aten::gelu.out"),
    *("aten::copy_", "aten::zero_", "aten::add_.Tensor"),
)


class Launch(NamedTuple):
    """A compiled kernel, its grid of three sizes, tensors, descriptors, numbers and None, and what follows them."""

    compiled: Any
    grid: tuple[int, ...]
    arguments: tuple
    constants: tuple


class Write(NamedTuple):
    """An operation of torch's that writes to one of its tensors."""

    function: Any
    arguments: tuple
    options: dict[str, Any]


class _ThreadRecorder(threading.local):
    recorder: "Recorder | None" = None


_thread = _ThreadRecorder()


class Recorder(TorchDispatchMode):
    """Notes launches and writes while it is entered, what was allocated, and whether anything else was computed."""

    def __init__(self):
        super().__init__()
        self.steps: list[Launch | Write] = []
        self.allocated: set[int] = set()  # addresses of storages
        self.complete = True

    def __enter__(self):
        _thread.recorder = self
        return super().__enter__()

    def __exit__(self, *exception):
        _thread.recorder = None
        return super().__exit__(*exception)

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        schema = function._schema
        if schema.name in _ALLOCATIONS:
            self.allocated.add(result.untyped_storage().data_ptr())
        elif f"{schema.name}.{schema.overload_name}".rstrip(".") in _WRITES:
            self.steps.append(Write(function, args, kwargs or {}))
        elif schema.is_mutable or not _is_view(result, args):
            logger.debug("%s cannot be issued again by address", schema.name)
            self.complete = False
        return result

    def made(self, tensor: Tensor) -> bool:
        """Whether a tensor is contiguous and all of what the call allocated for it."""
        storage = tensor.untyped_storage()
        return tensor.is_contiguous() and storage.data_ptr() in self.allocated and storage.nbytes() == tensor.nbytes


def is_recording() -> bool:
    """Whether this thread is being recorded."""
    return _thread.recorder is not None


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
        recorder.steps.append(Launch(compiled, grid, arguments, constants))


def _is_view(result: Any, arguments: tuple) -> bool:
    """Whether an operation only looked at its first argument's memory."""
    results = result if isinstance(result, (tuple, list)) else (result,)
    source = arguments[0] if arguments else None
    return isinstance(source, Tensor) and all(
        isinstance(t, Tensor) and t.untyped_storage().data_ptr() == source.untyped_storage().data_ptr() for t in results
    )
