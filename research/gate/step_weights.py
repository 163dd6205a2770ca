"""What an error at each sampling step does to the picture, and recordings that count tokens by it."""

import torch
from torch import Tensor

from ...svdq_core.quantize.calibrate import Collector
from ...svdq_core.quantize.statistics import InputStatistics
from ..evaluate.evaluated_scenes import Scenes, calibration_scenes
from ..evaluate.measures import relative_errors
from ..evaluate.network import flux_weights, latents_by_step, load_flux
from ..evaluate.recorded_inputs import CALIBRATION_STEPS, TOKENS, Source, collecting
from ..training.small_flux import Flux

PROBES = 16  # captions that steps are weighed with
DISTURBANCE = 0.05  # of a step's velocity, relative


class _Disturbed(torch.nn.Module):
    """The model with an error in the velocity of one step."""

    def __init__(self, model: Flux, step: int, seed: int) -> None:
        super().__init__()
        self.model, self.step, self.calls = model, step, 0
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, *inputs: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        velocity = self.model(*inputs, angles=angles)
        self.calls += 1
        if self.calls - 1 != self.step:
            return velocity
        noise = torch.randn(velocity.shape, generator=self.generator).to(velocity.device)
        size = velocity.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        return velocity + DISTURBANCE * size.view(-1, 1, 1, 1) * noise


def weigh_steps(model: Flux, scenes: Scenes, steps: int, seed: int) -> Tensor:
    """What errors of equal relative size in each step's velocity do to the last latents: squares, mean 1, (steps,)."""

    def last(network: torch.nn.Module) -> Tensor:
        *_, latents = latents_by_step(network, scenes, scenes.noise, steps)
        return latents

    exact = last(model)
    errors = [relative_errors(last(_Disturbed(model, step, seed)), exact).square().mean() for step in range(steps)]
    weights = torch.stack(errors).cpu()
    return weights / weights.mean()


def record_weighted(captions: int, device: torch.device, replicate: int = 0) -> Source:
    """As `record`, but each token counts as much as an error at its step would."""
    model, scenes = load_flux(device), calibration_scenes(captions, device, replicate)
    weights = weigh_steps(model, calibration_scenes(PROBES, device, replicate), CALIBRATION_STEPS, replicate)
    steps: list[Collector] = []
    latents, drawing = scenes.noise, latents_by_step(model, scenes, scenes.noise, CALIBRATION_STEPS)
    for step in range(CALIBRATION_STEPS):
        with collecting(model, seed=replicate * CALIBRATION_STEPS + step) as collector:
            latents = next(drawing)
        steps.append(collector)
    del latents
    inputs = {n: join_weighted([c.statistics(n) for c in steps], weights, replicate) for n in steps[0].names()}
    return Source(flux_weights(), inputs)


def join_weighted(parts: list[InputStatistics], weights: Tensor, seed: int) -> InputStatistics:
    """Statistics of parts of as many tokens each, counted by weights of mean 1: (parts,)."""
    shares = (weights / weights.sum()).tolist()
    generator = torch.Generator().manual_seed(seed)
    tokens = []
    for part, share in zip(parts, shares, strict=True):
        wanted = min(len(part.tokens), round(TOKENS * share))
        tokens.append(part.tokens[torch.randperm(len(part.tokens), generator=generator)[:wanted]])

    def mean(values: list[Tensor]) -> Tensor:
        return sum((value * share for value, share in zip(values, shares, strict=True)), torch.zeros_like(values[0]))

    means = [part.mean for part in parts if part.mean is not None]
    kept = torch.cat(tokens)
    return InputStatistics(
        tokens=kept[torch.randperm(len(kept), generator=generator)],
        mean_square=mean([part.mean_square for part in parts]),
        absmax=torch.stack([part.absmax for part in parts]).amax(dim=0),
        count=sum(part.count for part in parts),
        hessians={span: mean([part.hessians[span] for part in parts]) for span in parts[0].hessians},
        hessian_count=sum(part.hessian_count for part in parts),
        mean=mean(means) if len(means) == len(parts) else None,
    )
