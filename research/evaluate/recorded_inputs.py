"""What is known of the inputs of the model's layers: recorded while it draws training captions, or run on noise."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...svdq_core.quantize.calibrate import Collector
from ...svdq_core.quantize.statistics import InputStatistics, named_generator
from ..training.sampler import GUIDANCE, schedule
from ..training.small_flux import CHANNELS, CONTEXT_WIDTH, POOLED_WIDTH, rotary_angles
from .evaluated_scenes import LATENT_SIDE, calibration_scenes
from .network import block_linears, flux_weights, latents_by_step, load_flux

TOKENS = 1024  # recorded of each input
CALIBRATION_STEPS = 8
# As nodes/host/quantize has them: pictures, tokens of text, the smallest size of texts, rows of an input that count.
NOISE_PICTURES, NOISE_WORDS, WEAKEST_TEXT, NOISE_ROWS = 16, 64, 0.1, 8192
SMOOTH_SCHEDULE = 1000  # steps of a schedule so fine that any time of the sampler is in it


@dataclass(frozen=True)
class Source:
    """The unquantized model and what was recorded of it.

    Args:
        weights: of the file, by the host's names, on the CPU.
        inputs: host module name -> statistics, on the CPU.
    """

    weights: dict[str, Tensor]
    inputs: dict[str, InputStatistics]

    def bias(self, name: str) -> Tensor:
        """Of a Linear: (N,) float32."""
        return self.weights[f"{name}.bias"].float()


def record(captions: int, device: torch.device, replicate: int = 0) -> Source:
    """Draw training captions with the unquantized model and record the input of every block Linear.

    Args:
        replicate: each number has other captions, other noise and another choice of tokens.
    """
    model = load_flux(device)
    scenes = calibration_scenes(captions, device, replicate)
    with collecting(model, seed=replicate) as collector:
        for _ in latents_by_step(model, scenes, scenes.noise, CALIBRATION_STEPS):
            pass
    return Source(flux_weights(), {name: collector.statistics(name) for name in collector.names()})


@torch.no_grad()
def record_noise(device: torch.device, seed: int = 0) -> Source:
    """What the pack assumes where nothing was recorded: one step of the model on noise at times spread over a run."""
    model, draw = load_flux(device), named_generator(seed, "noise")

    def normal(*shape: int) -> Tensor:
        return torch.randn(NOISE_PICTURES, *shape, generator=draw)

    x = normal(CHANNELS, LATENT_SIDE, LATENT_SIDE)
    sizes = WEAKEST_TEXT ** torch.rand(NOISE_PICTURES, 1, 1, generator=draw)
    order = torch.randperm(NOISE_PICTURES, generator=draw)
    progress = (order + torch.rand(NOISE_PICTURES, generator=draw)) / NOISE_PICTURES
    times = torch.tensor(schedule(SMOOTH_SCHEDULE))[(progress * SMOOTH_SCHEDULE).long()]
    context, pooled = normal(NOISE_WORDS, CONTEXT_WIDTH) * sizes, normal(POOLED_WIDTH)
    guidance = torch.full((NOISE_PICTURES,), GUIDANCE)
    angles = rotary_angles(LATENT_SIDE // 2, LATENT_SIDE // 2, NOISE_WORDS, device)
    with collecting(model, seed, NOISE_ROWS) as collector:
        model(*(t.to(device) for t in (x, times, context, pooled, guidance)), angles=angles)
    inputs = {name: InputStatistics.from_tokens(collector.statistics(name).tokens) for name in collector.names()}
    return Source(flux_weights(), inputs)


@contextmanager
def collecting(model: nn.Module, seed: int = 0, tokens: int = TOKENS) -> Iterator[Collector]:
    """A collector that sees the inputs of all block Linears of a model for as long as it is open."""
    linears = block_linears(model)
    collector = Collector(seed, tokens, {n: ((0, m.in_features),) for n, m in linears.items()})
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: collector.add(name, inputs[0]))
        for name, module in linears.items()
    ]
    try:
        yield collector
    finally:
        for hook in hooks:
            hook.remove()
