"""What a path is: one way to compute a layer's call, which says in words where it cannot."""

from torch import Tensor, float32

from ..gpus import Generation, generation, why_no_triton
from ..layer_call import LayerCall


class Path:
    """One way to compute calls of some schemes and modes; paths are objects without state.

    Attributes:
        name: in words for the user, such that "w4a8 with NAME" can be said.
        serves: (scheme, mode) of the calls that it is for.
    """

    name: str
    serves: frozenset[tuple[str, str]]

    def can_run(self, call: LayerCall) -> str | None:
        """Why it cannot compute a call that it is for, in words; None if it can be tried."""
        raise NotImplementedError

    def run(self, call: LayerCall) -> Tensor:
        """The call's result, (M, N) of x.dtype, after its epilogue. Whatever it raises sends the call a path down."""
        raise NotImplementedError


class KernelPath(Path):
    """A path through Triton kernels: GPUs and 16-bit activations only."""

    def why_not_on(self, gpu: Generation) -> str | None:
        """Why no call can take it on a generation of GPUs with the Triton that is installed; None if some can."""
        del gpu
        return None

    def why_not_for(self, call: LayerCall) -> str | None:
        """Why a call cannot take it for its own shapes or dtypes; None if it can."""
        del call
        return None

    def can_run(self, call: LayerCall) -> str | None:
        device = call.x.device
        reason = why_no_triton(device)
        if reason is None and call.x.dtype == float32:
            reason = "float32 activations have no kernel"
        return reason or self.why_not_on(generation(device)) or self.why_not_for(call)
