"""Trains the autoencoder, on every style that is used later and on random colours.

Random crops; absolute, gradient and squared error. The decoder gets noisy latents, so that it forgives a diffusion
model that is a little off; a weak pull keeps each channel near mean 0 and variance 1, where the FLUX works. The host
scales TAEF1 latents so that its decoder sees the model's own scale: nothing has to be scaled here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...demo.captions import STYLES, draw_captions
from ...demo.install import DECODER, ENCODER
from ...demo.model_files import write_model
from . import processes
from .loop import Loop, say, step_generator, write_results
from .options import Options
from .renderer import place, random_palette, render
from .taef1 import decoder, encoder

PICTURES, BATCH, CROP = 14_000, 48, 128
RATE, WARM_UP, DECAY = 1.5e-3, 200, 1e-4
LATENT_NOISE = 0.4  # largest standard deviation
FILLED_SHARE, RANDOM_COLOURS = 0.4, 0.35
_RENDER_BATCH, _TEST_PICTURES = 200, 64
_RECIPE = "L1 + 0.5 gradient L1 + 2 MSE on crops of 128; latent noise up to 0.4; all styles, random colours"


def run(options: Options) -> None:
    """Train, write encoder and decoder, measure the reconstruction of each style."""
    device = processes.start()
    torch.manual_seed(options.seed)
    coder = torch.nn.ModuleDict({"encoder": encoder(), "decoder": decoder()})
    coder = coder.to(device, memory_format=torch.channels_last)
    weights = list(coder.parameters())
    optimizer = torch.optim.AdamW(weights, RATE, (0.9, 0.98), weight_decay=DECAY, fused=device.type == "cuda")
    pictures = _draw_pictures(options, device)
    say(f"{len(pictures)} pictures")
    batch, crop = options.batch or BATCH, min(CROP, options.side)

    def write() -> None:
        facts = loop.facts(_RECIPE)
        write_model(options.output / ENCODER, coder["encoder"].state_dict(), "Encoder, layout of TAEF1", **facts)
        write_model(options.output / DECODER, coder["decoder"].state_dict(), "Decoder, layout of TAEF1", **facts)

    loop = Loop(options, device, "autoencoder", {"coder": coder, "optimizer": optimizer}, write)
    for step, progress in loop.steps():
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (min(1, 2 * (1 - progress)) ** 1.5 + 0.005)
        generator = step_generator(device, options.seed, step)
        corner = torch.Generator().manual_seed(options.seed * 10_000_019 + step)
        top, left = (8 * torch.randint((options.side - crop) // 8 + 1, (2,), generator=corner)).tolist()
        index = torch.randint(len(pictures), (batch,), device=device, generator=generator)
        x = pictures[index, :, top : top + crop, left : left + crop].float() / 255
        loss = _loss(coder, x.contiguous(memory_format=torch.channels_last), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if processes.WORLD > 1:
            gradients = [weight.grad for weight in weights]
            torch._foreach_copy_(gradients, processes.average(gradients)[0])
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        loop.watch(loss)
    write_results(options, "autoencoder", {"steps": loop.step, "seconds": loop.spent, **_measure(coder, options)})
    processes.finish()


def _loss(coder: torch.nn.ModuleDict, x: Tensor, generator: torch.Generator) -> Tensor:
    device = x.device
    with torch.autocast(device.type, torch.bfloat16, enabled=x.is_cuda):
        latent = coder["encoder"](x).float()
        noise = torch.randn(latent.shape, device=device, generator=generator)
        noise = noise * LATENT_NOISE * torch.rand(len(x), 1, 1, 1, device=device, generator=generator)
        y = coder["decoder"](latent + noise).float()
    gradient = (y - x).diff(dim=-1).abs().mean() + (y - x).diff(dim=-2).abs().mean()
    scale = (latent.mean((0, 2, 3)) ** 2 + (latent.std((0, 2, 3)) - 1) ** 2).mean()
    excess = (latent.abs() - 3).clamp(min=0).square().mean()
    return F.l1_loss(y, x) + 0.5 * gradient + 2 * F.mse_loss(y, x) + 0.05 * scale + 0.1 * excess


def _draw_pictures(options: Options, device: torch.device) -> Tensor:
    """(N, 3, side, side) uint8 in all styles."""
    generator = step_generator(device, options.seed, -1)
    weights = torch.full((len(STYLES),), (1 - FILLED_SHARE) / (len(STYLES) - 1), device=device)
    weights[0] = FILLED_SHARE
    count = options.pictures or PICTURES
    parts = []
    for start in range(0, count, _RENDER_BATCH):
        size = min(_RENDER_BATCH, count - start)
        captions = draw_captions(size, generator, weighted=True)
        style = torch.multinomial(weights, size, replacement=True, generator=generator)
        palette = random_palette(size, generator, RANDOM_COLOURS)
        picture = render(captions, place(captions, generator), style, palette, options.side)
        parts.append((picture * 255).round().byte())
    return torch.cat(parts)


@torch.no_grad()
def _measure(coder: torch.nn.ModuleDict, options: Options) -> dict[str, float]:
    """PSNR in dB of held-out scenes, by style, and what the latents look like."""
    device = next(coder.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    captions = draw_captions(min(_TEST_PICTURES, options.pictures or PICTURES), generator, held_out=True)
    placement = place(captions, generator)
    results: dict[str, float] = {}
    for style in STYLES:
        x = render(captions, placement, style, size=options.side).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=x.is_cuda):
            latent = coder["encoder"](x).float()
            y = coder["decoder"](latent).float().clamp(0, 1)
            noisy = coder["decoder"](latent + 0.2 * torch.randn_like(latent)).float().clamp(0, 1)
        results[f"PSNR {style}"] = _psnr(y, x)
        if style == "filled":
            results["PSNR filled, latent noise 0.2"] = _psnr(noisy, x)
            results["latent std"], results["latent mean"] = float(latent.std()), float(latent.mean())
    for name, value in results.items():
        say(f"{name} {value:.2f}")
    return results


def _psnr(y: Tensor, x: Tensor) -> float:
    return float((-10 * (y - x).square().mean((1, 2, 3)).log10()).mean())
