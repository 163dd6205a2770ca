"""ComfyUI's own forward on several samples at once, block after block, each with the refined layers of those before.

Each forward is in a thread of its own that waits before every block, so that one block's weights are on the GPU at a
time. Between two waits everything is ComfyUI's; within a block the Linears are exchanged and gradients go through.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import comfy.model_base
import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ....svdq_core.errors import SVDQuantError
from .replica import replicate, route
from .waiting_forward import WaitingForward

_NO_LINEARS: dict[str, nn.Module] = {}


class HostRuns:
    """BlockRuns of ComfyUI's model.

    Args:
        model: on any device or without memory; it is not changed.
        blocks: names of its blocks.
        weights: tensor name within the diffusion_model -> tensor of any float dtype, on the device.
        samples: what apply_model is called with, a mapping for each of them.
        device: where the arithmetic runs. dtype: of the products within blocks.
        poll: called before each run of a block; what it raises ends the run.
    """

    def __init__(
        self,
        model: comfy.model_base.BaseModel,
        blocks: Sequence[str],
        *,
        weights: Mapping[str, Tensor],
        samples: Sequence[Mapping[str, Any]],
        device: torch.device,
        dtype: torch.dtype,
        poll: Callable[[], None] = lambda: None,
    ):
        self.weights, self.dtype, self.poll = weights, dtype, poll
        self._linears: Mapping[str, nn.Module] = _NO_LINEARS
        self._block: str | None = ""
        self._left: dict[str, Mapping[str, nn.Module]] = {}
        self._running: WaitingForward | None = None
        self._forwards: dict[str, Callable] = {}
        with torch.inference_mode(False), torch.no_grad(), _training():
            self._twin = self._replicate(model, device)
            for name in blocks:
                module = self._twin.diffusion_model.get_submodule(name)
                self._forwards[name] = module.forward
                module.__dict__["forward"] = self._waiting(name)
            moved = [{name: _moved(value, device) for name, value in sample.items()} for sample in samples]
        self.ways = [WaitingForward(self._apply(sample)) for sample in moved]

    def advance(self) -> str | None:
        """As BlockRuns.

        Raises:
            SVDQuantError: the samples take different ways through the model.
        """
        with _training():
            found = [self._resume(way) for way in self.ways]
        if len(set(found)) != 1:
            names = " and ".join(sorted({str(name) for name in found}))
            raise SVDQuantError(f"The model runs {names} at the same time for different inputs; it cannot be refined.")
        self._block = found[0]
        return self._block

    def here(self) -> "HostRun":
        assert self._block, "asked of a block that no forward waits before"
        return HostRun(self, self._block)

    def leave(self, linears: Mapping[str, nn.Module]) -> None:
        assert self._block, "left without having come to it"
        self._left[self._block] = dict(linears)

    def close(self) -> None:
        for way in self.ways:
            way.close()

    def run(self, block: str, inputs: tuple[tuple, dict[str, Any]], linears: Mapping[str, nn.Module]) -> Any:
        """What a block makes of its arguments."""
        self.poll()
        arguments, named = inputs
        before, self._linears = self._linears, linears
        try:
            with _training():
                return self._forwards[block](*_fresh(arguments), **{k: _fresh(v) for k, v in named.items()})
        finally:
            self._linears = before

    def _resume(self, way: WaitingForward) -> str | None:
        self._running = way
        return way.resume()

    def _apply(self, sample: Mapping[str, Any]) -> Callable[[], None]:
        def forward() -> None:
            self._twin.apply_model(**sample, transformer_options={"optimized_attention_override": _plain_attention})

        return forward

    def _waiting(self, block: str) -> Callable:
        """In place of a block's forward: wait until it is known what its Linears are."""

        def forward(*arguments: Any, **named: Any) -> Any:
            way, inputs = self._running, (arguments, named)
            assert way is not None, "the forward runs by itself"
            if block not in self._left:  # a block that runs twice is refined for its first time
                way.wait_before(block, inputs)
            way.inputs = (), {}
            return self.run(block, inputs, self._left[block])

        return forward

    def _replicate(self, model: comfy.model_base.BaseModel, device: torch.device) -> comfy.model_base.BaseModel:
        own = dict([*model.diffusion_model.named_parameters(), *model.diffusion_model.named_buffers()])

        def tensor(name: str) -> Tensor:
            return (self.weights[name] if name in self.weights else own[name].detach()).clone()

        twin = replicate(model, tensor, device)
        for module in twin.diffusion_model.modules():
            for key, value in list(module.__dict__.items()):
                if isinstance(value, Tensor):
                    module.__dict__[key] = _with_gradients(value)
        route(twin, self._linear, lambda name, x: self._tensors(name, x, x.dtype))
        return twin

    def _linear(self, name: str) -> Callable:
        def forward(x: Tensor, *_: Any) -> Tensor:
            other = self._linears.get(name)
            if other is not None:
                return other(x)
            dtype = self.dtype if self._block else x.dtype
            weight, bias = self._tensors(name, x, dtype)
            return nn.functional.linear(x.to(dtype), weight, bias).to(x.dtype)

        return forward

    def _tensors(self, name: str, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        weight, bias = (
            _with_gradients(self.weights[key].to(x.device, dtype)) if (key := f"{name}.{end}") in self.weights else None
            for end in ("weight", "bias")
        )
        assert weight is not None, f"{name} has no weight"
        return weight, bias


class HostRun:
    """VisitedBlock of ComfyUI's model; what the full-precision block makes of each sample is worked out once."""

    def __init__(self, runs: HostRuns, block: str):
        self.runs, self.block, self.samples = runs, block, len(runs.ways)
        with torch.no_grad():
            self._targets = [_tensors_of(runs.run(block, way.inputs, _NO_LINEARS), block) for way in runs.ways]

    def output(self, index: int, linears: Mapping[str, nn.Module]) -> list[Tensor]:
        return _tensors_of(self.runs.run(self.block, self.runs.ways[index].inputs, linears), self.block)

    def target(self, index: int) -> list[Tensor]:
        return self._targets[index]

    def gradients(self) -> AbstractContextManager:
        """ComfyUI's blocks add to tensors in place, also to such that a gradient needs as they were."""
        return torch.autograd.graph.allow_mutation_on_saved_tensors()


@contextmanager
def _training() -> Iterator[None]:
    """ComfyUI then takes the operations that have gradients."""
    before = getattr(comfy.model_management, "in_training", False)
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def _with_gradients(tensor: Tensor) -> Tensor:
    """ComfyUI's nodes run in a mode whose tensors know no gradients; a copy of such a one that does."""
    return tensor.clone() if tensor.is_inference() else tensor


def _plain_attention(_: Callable, *arguments: Any, **named: Any) -> Tensor:
    """In place of whatever the user runs ComfyUI with: others have no gradient, or round."""
    return attention_pytorch(*arguments, **named)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    return {key: _moved(item, device) for key, item in value.items()} if type(value) is dict else value


def _fresh(value: Any) -> Any:
    """Copies of tensors that a block is given: it may write into them."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(_fresh(item) for item in value)
    return value


def _tensors_of(result: Any, block: str) -> list[Tensor]:
    found: list[Tensor] = []
    for value in result if isinstance(result, (tuple, list)) else [result]:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _tensors_of(value, block)
    if not found:
        raise SVDQuantError(f"{block} gives back no tensor, so there is nothing to refine it towards. Choose best.")
    return found
