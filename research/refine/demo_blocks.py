"""The demo's FLUX as it is refined: block after block on kept inputs, or as a whole."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluate.network import with_layers
from ..training.small_flux import Flux
from .graphed import graphed
from .states import StateBatch

KINDS = ("double_blocks", "single_blocks")
Stream = tuple[Tensor, ...]  # picture and text in double blocks, both in one tensor afterwards


@contextmanager
def replaced(module: nn.Module, linears: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other modules in the places of a module's own; names as within it."""
    own = {name: module.get_submodule(name) for name in linears}
    _place(module, linears)
    try:
        yield
    finally:
        _place(module, own)


def _place(module: nn.Module, linears: Mapping[str, nn.Module]) -> None:
    for name, linear in linears.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, linear)


@dataclass
class _Sample:
    """A batch on its way: what every block sees, and the streams of both models before the next block."""

    vector: Tensor
    angles: tuple[Tensor, Tensor]
    words: int
    quantized: Stream
    dense: Stream


class DemoRuns:
    """BlockRuns of the demo's FLUX.

    Args:
        model: in full precision; its layers are never changed for longer than a call.
        batches: one for each sample.
        aim: see Refinement.
    """

    def __init__(self, model: Flux, batches: Sequence[StateBatch], aim: str):
        self.model, self.aim = model, aim
        self.samples = [self._begin(states) for states in batches]
        self._left = iter([f"{kind}.{i}" for kind in KINDS for i, _ in enumerate(model.get_submodule(kind).children())])
        self._block = ""

    def advance(self) -> str | None:
        self._block = next(self._left, "")
        if self._block.startswith(KINDS[1]) and len(self.samples[0].quantized) == 2:
            for sample in self.samples:
                sample.quantized, sample.dense = ((torch.cat([t, i], 1),) for i, t in (sample.quantized, sample.dense))
        return self._block or None

    def here(self) -> "DemoRun":
        return DemoRun(self, self._block)

    @torch.no_grad()
    def leave(self, linears: Mapping[str, nn.Module]) -> None:
        for sample in self.samples:
            sample.quantized = self.run(self._block, sample, sample.quantized, linears)
            sample.dense = self.run(self._block, sample, sample.dense, {})

    def close(self) -> None:
        self.samples = []

    def run(self, block: str, sample: _Sample, stream: Stream, linears: Mapping[str, nn.Module]) -> Stream:
        """What a block makes of a stream."""
        module = self.model.get_submodule(block)
        with replaced(module, {name.removeprefix(f"{block}."): linear for name, linear in linears.items()}):
            out = module(*stream, sample.vector, sample.angles)
        return out if isinstance(out, tuple) else (out,)

    @torch.no_grad()
    def _begin(self, states: StateBatch) -> _Sample:
        """What small_flux.Flux.forward does before its first block, noted by stopping there."""
        first = self.model.get_submodule("double_blocks.0")
        seen: list[tuple] = []

        class _SeenError(Exception):
            pass

        def stop(_: nn.Module, arguments: tuple) -> None:
            seen.append(arguments)
            raise _SeenError

        handle = first.register_forward_pre_hook(stop)
        try:
            states.velocity(self.model)
        except _SeenError:
            pass
        finally:
            handle.remove()
        image, text, vector, angles = seen[0]
        return _Sample(vector, angles, text.shape[1], (image, text), (image, text))


class DemoRun:
    """VisitedBlock of it; what is aimed at is worked out once."""

    def __init__(self, runs: DemoRuns, block: str):
        self.runs, self.block, self.samples = runs, block, len(runs.samples)
        self._trained: Callable[..., Any] | None = None
        with torch.no_grad():
            self._targets = [
                runs.run(block, s, s.dense if runs.aim == "dense" else s.quantized, {}) for s in runs.samples
            ]

    def output(self, index: int, linears: Mapping[str, nn.Module]) -> Stream:
        sample = self.runs.samples[index]
        if not torch.is_grad_enabled():
            return self.runs.run(self.block, sample, sample.quantized, linears)
        tensors = (*sample.quantized, sample.vector, *sample.angles)
        if self._trained is None:
            block = copy.deepcopy(self.runs.model.get_submodule(self.block))
            _place(block, {name.removeprefix(f"{self.block}."): linear for name, linear in linears.items()})
            self._trained = graphed(block, _run_block, tensors)
        out = self._trained(*tensors)
        return out if isinstance(out, tuple) else (out,)

    def target(self, index: int) -> Stream:
        return self._targets[index]

    def gradients(self) -> AbstractContextManager:
        return nullcontext()


def _run_block(block: nn.Module, *tensors: Tensor) -> Any:
    *stream, vector, cosine, sine = tensors
    return block(*stream, vector, (cosine, sine))


def _run_model(model: nn.Module, *tensors: Tensor) -> Tensor:
    *arguments, cosine, sine = tensors
    return model(*arguments, angles=(cosine, sine))


class VelocityLoss:
    """How far the whole model's velocity is off, for refine(); what it should be is worked out once.

    Args:
        linears: put into a copy of the model.
    """

    def __init__(self, model: Flux, batches: Sequence[StateBatch], linears: Mapping[str, nn.Module]):
        self.batches, self.student = batches, with_layers(model, {})
        _place(self.student, linears)
        self._trained: Callable[..., Any] | None = None
        with torch.no_grad():
            self._wanted = [states.velocity(model) for states in batches]

    def __call__(self, index: int) -> Tensor:
        states, wanted = self.batches[index], self._wanted[index]
        if torch.is_grad_enabled():
            tensors = (*states.arguments(), *states.angles)
            self._trained = self._trained or graphed(self.student, _run_model, tensors)
            velocity = self._trained(*tensors)
        else:
            velocity = states.velocity(self.student)
        lost = (velocity - wanted).square().flatten(1).mean(dim=1)
        return (states.weight * lost / wanted.square().flatten(1).mean(dim=1)).mean()
