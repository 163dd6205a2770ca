"""A forward captured once as a CUDA graph: the same launches again, without the Python that issued them."""

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ....svdq_core.runtime import kernels_given_up
from .addresses import Weights
from .inputs import StaticInputs

# ||graph - eager|| / ||eager|| of the first replay: bit-equal where cuBLAS chooses alike; anything above is a fault
TOLERANCE = 1e-2


class UnequalError(Exception):
    """A graph does not compute what the call does that it was captured from."""


class WaitsError(Exception):
    """A call waits for the GPU before it is done, which a capture does not allow."""


class CudaGraph:
    """What torch captures on the current GPU.

    What a call allocates while it is captured belongs to the graph. Under cudaMallocAsync it is no memory at all until
    the graph runs, and whoever frees it outside of the capture ends the process. So nothing of it is kept: the result
    is copied to a place made before, and the call has run once on the stream of the capture, where cuBLAS then has its
    workspace. That run shows whether the call waits for the GPU; a capture that is broken off by that cannot free what
    it has allocated, so it is not begun.
    """

    def __init__(self, device: torch.device):
        self.device, self._graph = device, torch.cuda.CUDAGraph()

    def capture(self, compute: Callable[[], Tensor]) -> Tensor:
        """The result's place; other threads of the host may use the GPU meanwhile.

        Raises:
            WaitsError: compute() waits for the GPU.
        """
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), no_waiting():
                out = torch.empty_like(compute())
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                try:
                    out.copy_(compute())
                except BaseException as error:
                    traceback.clear_frames(error.__traceback__)  # free what they hold while that can be captured
                    raise
        return out

    def replay(self) -> None:
        self._graph.replay()


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises WaitsError at the end if something within waited for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    # not torch's remark, once in a process, that this mode "does not yet detect all synchronizing operations"
    waits = [str(warning.message) for warning in said if "called a synchronizing" in str(warning.message)]
    if waits:
        raise WaitsError(f"the model waits for the GPU in the middle of a step ({waits[0].partition(chr(10))[0]})")


class Captured:
    """A forward as a graph, with the memory that it works in.

    Args:
        compute: (call) -> result. call: as inputs.split() takes it. expected: what compute(call) gave.
        weights: where everything lies that the graph reads beside the call.
        make_graph: CudaGraph, or what stands for it.

    Raises:
        UnequalError: its first result is not `expected`. RuntimeError and others: what it does cannot be captured.
    """

    def __init__(
        self,
        compute: Callable[[Any], Tensor],
        call: Any,
        expected: Tensor,
        weights: Weights,
        make_graph: Callable[[torch.device], Any] = CudaGraph,
    ):
        self._inputs, self._weights = StaticInputs(call, expected.device), weights
        self._graph = make_graph(expected.device)
        before = kernels_given_up()
        self._out = self._graph.capture(lambda: compute(self._inputs.call))
        if kernels_given_up() != before:
            raise UnequalError("a kernel could not be launched while it was captured")
        self._graph.replay()
        error = float((self._out.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-20))
        if not error < TOLERANCE:
            raise UnequalError(f"its result is {error:.1e} from the one computed as usual")

    def run(self, model: Any, tensors: list[Tensor]) -> Tensor | None:
        """The result for other tensors; None if weights have moved, so that it can never be used again."""
        if not self._weights.same(model):
            return None
        with self._weights.pinned() as there:
            if not there:
                return None
            self._inputs.fill(tensors)
            self._graph.replay()
            return self._out.clone()
