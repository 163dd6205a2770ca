"""Training of what a quantized layer lets move, against what the full-precision model does.

Whoever calls says how far off the layers are on each of its samples; the samples are batches of tokens of a block's
input or states of a whole model. A few are held out: if what was trained, rounded as the file holds it, is no better on
those, the layers stay as they were.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import SVDQuantError
from ..layer import QuantizedLayer
from .refine_layer import RefinedLinear
from .statistics import named_generator

WARM_UP = 0.1  # of the steps, in which the learning rate rises; it falls with a cosine afterwards
BETAS = (0.9, 0.98)
CLIP = 1.0  # of the gradient's norm, the loss in units of its beginning


@dataclass(frozen=True)
class RefineSpec:
    """Settings of the training.

    Args:
        steps: of Adam. samples: in each step.
        rate: the largest learning rate.
        held_out: every so many-th sample is not trained on.
        bits: of the activations while training, 8 or None for 16.
        seed: of the order of the samples.
    """

    steps: int = 300
    samples: int = 2
    rate: float = 3e-4
    held_out: int = 8
    bits: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "samples"):
            if getattr(self, name) < 1:
                raise SVDQuantError(f"{name} {getattr(self, name)}: expected at least 1.")
        if self.held_out < 2:
            raise SVDQuantError(f"held_out {self.held_out}: expected at least 2, or nothing is left to train on.")
        if self.bits not in (8, None):
            raise SVDQuantError(f"bits {self.bits}: expected 8, or none for 16. Fewer make the result worse.")
        if not self.rate > 0:
            raise SVDQuantError(f"rate {self.rate}: expected a number above 0.")


@dataclass(frozen=True)
class Refined:
    """What came of it.

    Args:
        layers: as files hold them; those that came in where training did not help.
        before, after: mean loss on the samples held out.
        kept: whether the trained ones are in `layers`.
    """

    layers: dict[str, QuantizedLayer]
    before: float
    after: float
    kept: bool


# of one sample: how far the layers, as they are now, are off
Loss = Callable[[int], Tensor]


def refine(
    layers: Mapping[str, RefinedLinear],
    loss: Loss,
    samples: int,
    spec: RefineSpec,
    name: str,
    *,
    around: Callable[[], AbstractContextManager] = nullcontext,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Refined:
    """Train layers that stand in a model already.

    Args:
        layers: host name -> layer; they end as what a file holds.
        loss: of a sample, 0 to `samples` - 1.
        name: of the block or model, for messages and the order of the samples.
        around: within which a loss is made and its gradients are worked out.
        on_step: called with the steps done and all of them; what it raises ends the run.

    Raises:
        SVDQuantError: the loss is no number any more, or there are too few samples.
        torch.OutOfMemoryError: as torch raises it.
    """
    own = {n: layer.layer for n, layer in layers.items()}
    held = list(range(spec.held_out - 1, samples, spec.held_out))
    trained = [index for index in range(samples) if index not in set(held)]
    if not held:
        raise SVDQuantError(f"{name}: {samples} samples, expected at least {spec.held_out} so that one is held out.")
    before = _mean(loss, held)
    _check(before, name, "before the first step")
    if before == 0:  # nothing is lost, as in a block of zeros
        return Refined(own, before, before, False)
    paces = _distinct(layers)
    parameters = list(paces)
    groups = [
        {"params": [p for p in parameters if paces[p] == pace], "lr": spec.rate * pace, "pace": pace}
        for pace in sorted(set(paces.values()))
    ]
    optimizer = torch.optim.Adam(groups, betas=BETAS, eps=1e-10)
    for parameter in parameters:
        parameter.requires_grad_(True)
    generator = named_generator(spec.seed, f"refine {name}")
    queue: list[int] = []
    for step in range(spec.steps):
        for group in optimizer.param_groups:
            group["lr"] = spec.rate * group["pace"] * pace_at(step, spec.steps)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(spec.samples):
            queue = queue or [trained[i] for i in torch.randperm(len(trained), generator=generator).tolist()]
            with around():
                value = loss(queue.pop()) / (spec.samples * before)
                value.backward()
            total += value.detach()
        if step % 20 == 0 or step == spec.steps - 1:  # looking waits for the GPU
            _check(float(total), name, f"in step {step} of {spec.steps}")
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        on_step(step + 1, spec.steps)
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    del optimizer
    found = {n: layer.stored(n) for n, layer in layers.items()}
    for n, layer in layers.items():
        layer.take(found[n])
    after = _mean(loss, held)
    if after < before:
        return Refined(found, before, after, True)
    for n, layer in layers.items():
        layer.take(own[n])
    return Refined(own, before, after, False)


def pace_at(step: int, steps: int) -> float:
    """Share of the largest learning rate, 0 to 1."""
    place, rise = (step + 0.5) / steps, WARM_UP
    return place / rise if place < rise else 0.5 * (1 + math.cos(math.pi * (place - rise) / (1 - rise)))


def _distinct(layers: Mapping[str, RefinedLinear]) -> dict[nn.Parameter, float]:
    """Each parameter once, though layers may share one."""
    return {parameter: pace for layer in layers.values() for parameter, pace in layer.parameters_by_pace()}


@torch.no_grad()
def _mean(loss: Loss, samples: list[int]) -> float:
    return float(sum(loss(index).double() for index in samples) / len(samples))


def _check(value: float, name: str, when: str) -> None:
    if not math.isfinite(value):
        raise SVDQuantError(
            f"{name}: the difference to the full-precision model is {value} {when}. The recorded or drawn inputs "
            "overflow, or the learning rate is too high; choose method best, or record other inputs."
        )
