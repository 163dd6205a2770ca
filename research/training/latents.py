"""Drawings through the encoder, kept on the device: what the FLUX and its LoRA learn from."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...demo.captions import draw_captions
from ...demo.install import ENCODER
from ...demo.model_files import read_model
from . import processes
from .loop import say
from .options import Options
from .renderer import place, render
from .taef1 import encoder

_BATCH = 200


@dataclass(frozen=True)
class Latents:
    """Encoded scenes and their captions.

    Args:
        latent: (N, 16, H, W) bf16.
        words: (N, TOKENS) uint8 word ids.
    """

    latent: Tensor
    words: Tensor

    def __len__(self) -> int:
        return len(self.words)


def random_latents(count: int, side: int, device: torch.device) -> Latents:
    """Noise in place of scenes, to try or to warm up the training."""
    captions = draw_captions(count, torch.Generator(device).manual_seed(0))
    latent = torch.randn(count, 16, side // 8, side // 8, device=device, dtype=torch.bfloat16)
    return Latents(latent, captions.word_ids().to(torch.uint8))


@torch.no_grad()
def encode_scenes(options: Options, device: torch.device, count: int, seconds: float, style: str = "filled") -> Latents:
    """Draw and encode training scenes, others in each process.

    Args:
        count: scenes wanted.
        seconds: stop after so long with fewer.
    """
    network: nn.Module = read_model(encoder(), options.model(ENCODER), device).to(memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed((options.seed + 77) * 64 + processes.RANK)
    latents: list[Tensor] = []
    words: list[Tensor] = []
    begin = time.monotonic()
    done = 0
    while done < count and time.monotonic() - begin < seconds:
        captions = draw_captions(min(_BATCH, count - done), generator, weighted=True)
        pictures = render(captions, place(captions, generator), style, size=options.side)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            latent = network(pictures.contiguous(memory_format=torch.channels_last))
        latents.append(latent.to(torch.bfloat16).contiguous())
        words.append(captions.word_ids().to(torch.uint8))
        done += len(captions)
        if device.type == "cuda" and len(words) % 20 == 0:
            torch.cuda.synchronize()  # or the clock says nothing
    together = Latents(torch.cat(latents), torch.cat(words))
    spread = together.latent[:2000].float().std()
    say(f"{done} {style} scenes encoded in {time.monotonic() - begin:.1f} s, std {spread:.3f}")
    return together
