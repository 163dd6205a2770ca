"""What is drawn: captions that training never saw, a hard set of them, and the noise that each starts from."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ...demo.captions import Captions, Conditioning, draw_captions
from ..training.small_flux import CHANNELS

LATENT_SIDE = 32
CAPTION_SEED, NOISE_SEED, RESEED, CALIBRATION_SEED = 20, 1_000_000, 2_000_000, 3_000_000
REPLICATE_STRIDE = 100_000  # more than captions that are ever recorded: each has a seed for its noise


@dataclass(frozen=True)
class Scenes:
    """B captions as the FLUX takes them.

    Args:
        captions: what they say.
        context: (B, words, CONTEXT_WIDTH), pooled: (B, POOLED_WIDTH).
        noise: (B, 16, 32, 32) that drawing starts from.
        other_noise: the same with other seeds.
        is_hard: (B,) bool: of the hard set.
    """

    captions: Captions
    context: Tensor
    pooled: Tensor
    noise: Tensor
    other_noise: Tensor
    is_hard: Tensor

    def __len__(self) -> int:
        return len(self.noise)

    def where(self, mask: Tensor) -> "Scenes":
        """Some of them; mask: (B,) bool."""
        return Scenes(*(getattr(self, field.name)[mask] for field in fields(self)))


def evaluated_scenes(count: int, hard: int, device: torch.device) -> Scenes:
    """`count` captions at random, then `hard` ones with small stars or rings on a dark ground; all held out."""
    generator = torch.Generator().manual_seed(CAPTION_SEED)
    parts = [draw_captions(count, generator, held_out=True)]
    if hard:
        parts.append(draw_captions(hard, generator, held_out=True, difficult=True))
    captions = Captions(*(torch.cat([getattr(p, field.name) for p in parts]) for field in fields(Captions)))
    return _with_noise(captions, NOISE_SEED, torch.arange(len(captions)) >= count, device)


def calibration_scenes(count: int, device: torch.device, replicate: int = 0) -> Scenes:
    """Captions that training saw, for recording inputs; none of them is evaluated.

    Args:
        replicate: each number has captions and noise of its own.
    """
    seed = CALIBRATION_SEED + REPLICATE_STRIDE * replicate
    captions = draw_captions(count, torch.Generator().manual_seed(seed))
    return _with_noise(captions, seed, torch.zeros(len(captions), dtype=torch.bool), device)


def _with_noise(captions: Captions, seed: int, is_hard: Tensor, device: torch.device) -> Scenes:
    captions = captions.to(device)
    context, pooled = Conditioning(device)(captions.word_ids())
    noise, other = (_noise(len(captions), first).to(device) for first in (seed, seed + RESEED))
    return Scenes(captions, context, pooled, noise, other, is_hard.to(device))


def _noise(count: int, first_seed: int) -> Tensor:
    """One seed for each picture, drawn on the CPU: the same on every machine, whatever the number of pictures."""
    one = torch.Generator()
    shape = (CHANNELS, LATENT_SIDE, LATENT_SIDE)
    return torch.stack([torch.randn(shape, generator=one.manual_seed(first_seed + i)) for i in range(count)])
