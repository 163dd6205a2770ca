"""What is trained on: states of the sampler on training captions, in batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ...svdq_core.quantize.statistics import named_generator
from ..evaluate.evaluated_scenes import Scenes
from ..evaluate.network import latents_by_step
from ..training.sampler import GUIDANCE, SHIFT, schedule
from ..training.small_flux import Flux, rotary_angles

SAMPLING_STEPS = 20
WEAKEST_TEXT = 0.1  # of drawn texts, as the quantizer's own inputs from noise


@dataclass(frozen=True)
class StateBatch:
    """A batch of inputs of the model.

    Args:
        x: (B, 16, 32, 32). time: (B,) share of noise. context, pooled: of the captions.
        weight: (B,) how much each counts, about 1 in the mean.
    """

    x: Tensor
    time: Tensor
    context: Tensor
    pooled: Tensor
    weight: Tensor

    def arguments(self) -> tuple[Tensor, ...]:
        """Of the model, angles aside."""
        return self.x, self.time, self.context, self.pooled, torch.full_like(self.time, GUIDANCE)

    @cached_property
    def angles(self) -> tuple[Tensor, Tensor]:
        """Of the rotary embedding."""
        return rotary_angles(self.x.shape[2] // 2, self.x.shape[3] // 2, self.context.shape[1], self.x.device)

    def velocity(self, model: Flux) -> Tensor:
        return model(*self.arguments(), angles=self.angles)


def draw_states(models: Sequence[Flux], scenes: Scenes, batch: int, weigh: str, seed: int) -> list[StateBatch]:
    """StateBatch on the ways of models, each with its share of the captions, shuffled and cut into batches.

    Args:
        weigh: see Refinement.
    """
    shares = schedule(SAMPLING_STEPS)
    strides = torch.tensor([a - b for a, b in pairwise(shares)])
    weights = strides.square() / strides.square().mean() if weigh == "step" else torch.ones(SAMPLING_STEPS)
    ways = []
    for place, model in enumerate(models):
        chosen = torch.arange(place, len(scenes), len(models), device=scenes.noise.device)
        part = Scenes(
            scenes.captions, scenes.context[chosen], scenes.pooled[chosen], scenes.noise[chosen],
            scenes.other_noise[chosen], scenes.is_hard[chosen],
        )  # fmt: skip
        way = [part.noise, *latents_by_step(model, part, part.noise, SAMPLING_STEPS)][:-1]
        ways.append((torch.stack(way), chosen))
    x = torch.cat([way.transpose(0, 1).flatten(0, 1) for way, _ in ways])
    caption = torch.cat([chosen.repeat_interleave(SAMPLING_STEPS) for _, chosen in ways])
    step = torch.arange(SAMPLING_STEPS).repeat(len(scenes))
    order = torch.randperm(len(x), generator=named_generator(seed, "states")).to(x.device)
    found = []
    for index in order.split(batch):
        steps = step[index.cpu()]
        found.append(
            StateBatch(
                x[index],
                torch.tensor(shares)[steps].to(x.device),
                scenes.context[caption[index]],
                scenes.pooled[caption[index]],
                weights[steps].to(x.device),
            )
        )
    return [states for states in found if len(states.x) == batch]


def draw_noise(count: int, scenes: Scenes, batch: int, seed: int) -> list[StateBatch]:
    """Batches as the quantizer draws inputs of a model that nobody recorded: noise as latent and as text."""
    generator, device = named_generator(seed, "noise states"), scenes.noise.device
    found = []
    for _ in range(count):
        size = WEAKEST_TEXT ** torch.rand(batch, 1, 1, generator=generator)
        context = torch.randn(batch, *scenes.context.shape[1:], generator=generator) * size
        time = (torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator)) / batch
        gain, left = math.exp(SHIFT), (1 - time).clamp(min=1e-3)
        time = gain / (gain + 1 / left - 1)  # places on the host's schedule
        x = torch.randn(batch, *scenes.noise.shape[1:], generator=generator)
        pooled = torch.randn(batch, scenes.pooled.shape[1], generator=generator)
        tensors = (x, time, context, pooled, torch.ones(batch))
        found.append(StateBatch(*(tensor.to(device) for tensor in tensors)))
    return found
