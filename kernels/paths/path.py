"""What a path is: one way to compute a layer's call, which says in words where it cannot."""

from dataclasses import replace
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from ..gpus import Generation, generation, why_no_triton
from ..layer_call import LayerCall
from ..step.fragments import are_fragments, from_weight_fragments


class Path:
    """One way to compute calls of some schemes and modes; paths are objects without state.

    Attributes:
        name: in words for the user, such that "w4a8 with NAME" can be said.
        serves: (scheme, mode) of the calls that it is for.
        reads_fragments: whether it takes codes of the weight in fragments as well.
    """

    reads_fragments = False
    name: str
    serves: frozenset[tuple[str, str]]

    def can_run(self, call: LayerCall) -> str | None:
        """Why it cannot compute a call that it is for, in words; None if it can be tried."""
        return self.why_not_here(call.x.device, call.x.dtype) or self.why_not_for(call)

    def why_not_here(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it computes no call with activations of a dtype on a device; None if it computes some."""
        raise NotImplementedError

    def why_not_for(self, call: LayerCall) -> str | None:
        """Why it cannot compute a call for its own sizes or dtypes; None if it can."""
        del call
        return None

    def run(self, call: LayerCall) -> Tensor:
        """The call's result, (M, N) of x.dtype, after its epilogue. Whatever it raises sends the call a path down."""
        return self.multiply(call, self.quantize(call))

    def makes(self, call: LayerCall) -> str | None:
        """What `quantize` makes of a call's activations, so that `multiply` of any path that makes the same takes it.

        None: nothing that calls could share.
        """
        del call
        return None

    def quantize(self, call: LayerCall) -> tuple[Tensor, ...]:
        """The call's activations as `multiply` takes them, and their projection; nothing of its weight is read."""
        raise NotImplementedError

    def multiply(self, call: LayerCall, quantized: tuple[Tensor, ...]) -> Tensor:
        """The call's result after its epilogue, of what `quantize` made of it, or of a call that reads the same."""
        raise NotImplementedError


def readable_by(path: Path, call: LayerCall) -> LayerCall:
    """A call with its weight's codes in an order that a path reads: if need be, fragments become rows in scratch."""
    qweight = call.tensors["qweight"]
    if path.reads_fragments or not are_fragments(qweight):
        return call
    return replace(call, tensors={**call.tensors, "qweight": from_weight_fragments(qweight)})


class KernelPath(Path):
    """A path through Triton kernels: GPUs and 16-bit activations only."""

    def why_not_on(self, gpu: Generation) -> str | None:
        """Why it computes nothing on a generation of GPUs with the Triton that is installed; None if it can."""
        del gpu
        return None

    def why_not_here(self, device: torch.device, dtype: torch.dtype) -> str | None:
        problem = why_no_triton(device)
        if problem is None and dtype == torch.float32:
            problem = "float32 activations have no kernel"
        return problem or self.why_not_on(generation(device))


@cache
def why_no_language(kernel: str) -> str | None:
    """Why a kernel of step/ cannot be imported with the Triton that is installed; None if it can."""
    try:
        import_module(f"..step.{kernel}", __package__)
    except (ImportError, AttributeError) as error:
        return f"this Triton lacks the language of the kernel ({error}); newer ones have it"
    return None


@cache
def why_too_old(needed: tuple[int, int], what: str) -> str | None:
    """Why the Triton that is installed compiles something only in newer versions, in words; None if it does."""
    version = str(getattr(import_module("triton"), "__version__", "")) if needed > (0, 0) else ""
    numbers = tuple(int(n) for n in version.split(".")[:2] if n.isdecimal())
    if len(numbers) < 2 or numbers >= needed:
        return None
    return f"Triton {version} compiles no {what}; Triton {'.'.join(map(str, needed))} does"


def outer_scales(call: LayerCall) -> dict[str, Tensor | None]:
    """What nvfp4 weights may have beside the scales of groups, by name."""
    return {name: call.tensors.get(name) for name in ("wtscale", "wcscales")}
