"""Small sampling runs with conditioning that needs no text encoder."""

import comfy.model_management
import comfy.sample
import torch
from torch import Tensor


def sample_flux(model, pixels: int = 128, steps: int = 4, conditioning=None) -> Tensor:
    """Latents of the tiny FLUX of tests/data: (1, 16, pixels/8, pixels/8)."""
    return sample(model, (1, 16, pixels // 8, pixels // 8), steps, conditioning or flux_conditioning())


def flux_conditioning() -> list:
    g = torch.Generator().manual_seed(1)
    pooled = torch.randn(1, 64, generator=g)
    return [[torch.randn(1, 16, 128, generator=g), {"pooled_output": pooled, "guidance": 3.5}]]


def sample_pixart(model, pixels: int = 512, steps: int = 2) -> Tensor:
    """Latents of a PixArt: (1, 4, pixels/8, pixels/8). Below 512 pixels its position embedding degenerates."""
    g = torch.Generator().manual_seed(1)
    conditioning = [[torch.randn(1, 8, 4096, generator=g), {}]]
    return sample(model, (1, 4, pixels // 8, pixels // 8), steps, conditioning)


def sample(model, shape: tuple, steps: int, conditioning: list) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            1.0,
            "euler",
            "simple",
            conditioning,
            conditioning,
            torch.zeros(shape),
            disable_pbar=True,
            seed=0,
        ).clone()


def rounding(on_the_cpu: float) -> float:
    """The largest relative error of the same arithmetic in another order: a GPU computes in bfloat16, of 8 bits."""
    return on_the_cpu if comfy.model_management.cpu_mode() else 5e-2


def relative_error(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a - b).norm() / b.norm())
