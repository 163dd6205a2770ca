"""Draws pictures with the FLUX and the autoencoder: euler on the host's schedule."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...demo.captions import Captions, Conditioning
from .small_flux import CHANNELS, rotary_angles

SHIFT = 1.15  # the host's default for FLUX
GUIDANCE = 3.5
LATENT_SIDE = 32
_BATCH = 256


def schedule(steps: int) -> list[float]:
    """Shares of noise from 1 to 0, `steps` + 1 of them: ComfyUI's scheduler "simple" for FLUX."""
    gain = math.exp(SHIFT)
    return [gain / (gain + 1 / (1 - step / steps) - 1) for step in range(steps)] + [0.0]


@torch.no_grad()
def sample(model: nn.Module, context: Tensor, pooled: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Turn noise (B, 16, H, W) into latents of the same shape, fp32, in the model's own scale."""
    batch, _, height, width = noise.shape
    angles = rotary_angles(height // 2, width // 2, context.shape[1], noise.device)
    guidance = torch.full((batch,), GUIDANCE, device=noise.device)
    shares = schedule(steps)
    x = noise.float()
    for share, following in pairwise(shares):
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=noise.is_cuda):
            velocity = model(x, torch.full_like(guidance, share), context, pooled, guidance, angles=angles)
        x = x + (following - share) * velocity.float()
    return x


@torch.no_grad()
def decode(decoder: nn.Module, latents: Tensor) -> Tensor:
    """Turn latents into pictures (B, 3, 8 H, 8 W), fp32 in [0, 1]."""
    parts = []
    for part in latents.split(_BATCH):
        with torch.autocast(part.device.type, torch.bfloat16, enabled=part.is_cuda):
            parts.append(decoder(part).float().clamp(0, 1))
    return torch.cat(parts)


def draw(
    model: nn.Module, decoder: nn.Module, captions: Captions, *, seed: int, steps: int, side: int = LATENT_SIDE
) -> Tensor:
    """Draw captions, (B, 3, 8 side, 8 side) in [0, 1]; the noise is the same on every machine."""
    device = captions.sentence.device
    conditioning = Conditioning(device)
    noise = torch.randn(len(captions), CHANNELS, side, side, generator=torch.Generator().manual_seed(seed))
    latents = []
    for start in range(0, len(captions), _BATCH):
        part = slice(start, start + _BATCH)
        latents.append(sample(model, *conditioning(captions[part].word_ids()), noise[part].to(device), steps))
    return decode(decoder, torch.cat(latents))
