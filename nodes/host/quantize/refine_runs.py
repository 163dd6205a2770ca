"""ComfyUI's own forward on several samples at once, block after block, twice: in full precision and with refined layers.

Each forward runs in a thread of its own that waits before every block, so that one block's weights are on the GPU at a
time. Between two waits everything is ComfyUI's; within a block the Linears are exchanged and gradients go through.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import comfy.model_base
import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ....svdq_core.errors import SVDQuantError
from .replica import CONVOLUTIONS, replicate

# of Python's augmented assignments, which would change what a gradient needs
_IN_PLACE = {"__iadd__": torch.add, "__isub__": torch.sub, "__imul__": torch.mul, "__itruediv__": torch.div}
_NO_LINEARS: dict[str, nn.Module] = {}


class _ClosedError(Exception):
    """Nobody waits for the rest of a forward."""


class _OutOfPlace(TorchFunctionMode):
    """`x += y` makes a new tensor: ComfyUI's blocks add to their input, which every run of a sample needs anew."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        instead = _IN_PLACE.get(getattr(func, "__name__", ""))
        if instead is not None and isinstance(args[0], Tensor):
            return instead(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Way:
    """One forward, in a thread that only ever runs while somebody waits for it."""

    def __init__(self, forward: Callable[["_Way"], None]):
        self.block: str | None = ""
        self.inputs: tuple[tuple, dict[str, Any]] = (), {}
        self.result: Any = None
        self._forward = forward
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._reports: SimpleQueue[str | BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="svdquant refine", daemon=True)

    def resume(self) -> str | None:
        """Run on to the next block; its name, None at the end.

        Raises:
            Exception: whatever the model raises.
        """
        if not self._thread.is_alive():
            if self.block is None:
                return None
            self._thread.start()
        self._go.put(True)
        report = self._reports.get()
        self.block = None if isinstance(report, BaseException) else report
        if isinstance(report, BaseException):
            raise report
        return report

    def wait_before(self, block: str, inputs: tuple[tuple, dict[str, Any]]) -> None:
        """Called by the thread."""
        self.inputs = inputs
        self._reports.put(block)
        if not self._go.get():
            raise _ClosedError

    def close(self) -> None:
        if self._thread.is_alive():
            self._go.put(False)
            self._thread.join()
        self.block, self.inputs, self.result = None, ((), {}), None

    def _work(self) -> None:
        try:
            if self._go.get():
                with torch.no_grad():
                    self._forward(self)
                self._reports.put(None)
        except _ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001  raised again where somebody waits
            self._reports.put(error)


class HostRuns:
    """BlockRuns of ComfyUI's model.

    Args:
        model: on any device or without memory; it is not changed.
        blocks: names of its blocks.
        weights: tensor name within the diffusion_model -> tensor of any float dtype, on the device.
        samples: of each, what apply_model is called with.
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
        self._running: _Way | None = None
        self._twin = self._replicate(model, device)
        self._forwards: dict[str, Callable] = {}
        for name in blocks:
            module = self._twin.diffusion_model.get_submodule(name)
            self._forwards[name] = module.forward
            module.__dict__["forward"] = self._waiting(name)
        # full precision first: its result is the target of the other
        self.dense, self.quantized = ([_Way(self._apply(sample)) for sample in samples] for _ in range(2))

    def advance(self) -> str | None:
        """As BlockRuns.

        Raises:
            SVDQuantError: the samples take different ways through the model.
        """
        with _training():
            found = [self._resume(way) for way in (*self.dense, *self.quantized)]
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
        for way in (*self.dense, *self.quantized):
            way.close()

    def run(self, block: str, inputs: tuple[tuple, dict[str, Any]], linears: Mapping[str, nn.Module]) -> Any:
        """What a block makes of its arguments."""
        self.poll()
        arguments, named = inputs
        before, self._linears = self._linears, linears
        try:
            with _training(), _OutOfPlace():
                return self._forwards[block](*_fresh(arguments), **{k: _fresh(v) for k, v in named.items()})
        finally:
            self._linears = before

    def _resume(self, way: _Way) -> str | None:
        self._running = way
        return way.resume()

    def _apply(self, sample: Mapping[str, Any]) -> Callable[[_Way], None]:
        def forward(_: _Way) -> None:
            self._twin.apply_model(**sample, transformer_options={"optimized_attention_override": _plain_attention})

        return forward

    def _waiting(self, block: str) -> Callable:
        """In place of a block's forward: wait until it is known what its Linears are."""

        def forward(*arguments: Any, **named: Any) -> Any:
            way, inputs = self._running, (arguments, named)
            assert way is not None
            if block not in self._left:  # a block that runs twice is refined for its first time
                way.wait_before(block, inputs)
            result, way.result, way.inputs = way.result, None, ((), {})
            if result is not None:
                return result
            return self.run(block, inputs, self._left.get(block, _NO_LINEARS) if way in self.quantized else _NO_LINEARS)

        return forward

    def _replicate(self, model: comfy.model_base.BaseModel, device: torch.device) -> comfy.model_base.BaseModel:
        own = dict([*model.diffusion_model.named_parameters(), *model.diffusion_model.named_buffers()])

        def tensor(name: str) -> Tensor:
            return self.weights[name] if name in self.weights else own[name].detach()

        twin = replicate(model, tensor, device)
        for name, module in twin.diffusion_model.named_modules():
            if isinstance(module, nn.Linear):
                module.__dict__["forward"] = self._linear(name)
            elif isinstance(module, CONVOLUTIONS):
                module.__dict__["forward"] = self._convolution(name, module)
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

    def _convolution(self, name: str, module: nn.Module) -> Callable:
        bare = next(kind for kind in CONVOLUTIONS if isinstance(module, kind))

        def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
            weight, bias = self._tensors(name, x, x.dtype)
            if hasattr(bare, "_conv_forward"):
                return bare._conv_forward(module, x, weight, bias)  # type: ignore[attr-defined]
            raise SVDQuantError(f"{name}: models with transposed convolutions are not refined. Choose method best.")

        return forward

    def _tensors(self, name: str, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        weight, bias = (
            self.weights[key].to(x.device, dtype) if (key := f"{name}.{end}") in self.weights else None
            for end in ("weight", "bias")
        )
        assert weight is not None, f"{name} has no weight"
        return weight, bias


class HostRun:
    """BlockRun of ComfyUI's model; what the full-precision block makes of each sample is worked out once."""

    def __init__(self, runs: HostRuns, block: str):
        self.runs, self.block, self.samples = runs, block, len(runs.quantized)
        self._targets: list[list[Tensor]] = []
        with torch.no_grad():
            for way in runs.dense:
                way.result = runs.run(block, way.inputs, _NO_LINEARS)
                self._targets.append(_tensors_of(way.result, block))

    def output(self, index: int, linears: Mapping[str, nn.Module]) -> list[Tensor]:
        return _tensors_of(self.runs.run(self.block, self.runs.quantized[index].inputs, linears), self.block)

    def target(self, index: int) -> list[Tensor]:
        return self._targets[index]


@contextmanager
def _training() -> Iterator[None]:
    """ComfyUI then takes the operations that have gradients."""
    before = getattr(comfy.model_management, "in_training", False)
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def _plain_attention(_: Callable, *arguments: Any, **named: Any) -> Tensor:
    """In place of whatever the user runs ComfyUI with: others have no gradient, or round."""
    return attention_pytorch(*arguments, **named)


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
