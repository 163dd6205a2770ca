"""Trains the LoRA of striped objects and measures with the reader what it does."""

import torch

from ...demo.captions import STYLES, Conditioning, draw_captions
from ...demo.install import DECODER, FLUX, LORA, READER
from ...demo.model_files import read_model, write_model
from ...demo.reader import Reader, read
from . import processes
from .latents import encode_scenes
from .loop import Loop, say, step_generator, write_results
from .lora import attach, lora_weights
from .many_pictures import write_sheet
from .options import Options
from .sampler import GUIDANCE, draw
from .small_flux import Flux, rotary_angles
from .taef1 import decoder
from .train_flux import flow_loss

STYLE, RANK = "striped", 16
PICTURES, ENCODE_SECONDS = 16_000, 10.0
BATCH, RATE = 128, 2e-3
TEST_PICTURES, TEST_SEED, STEPS = 256, 7, 20
_RECIPE = "flow matching on striped scenes, velocity MSE; AdamW 2e-3 falling to 0"


def run(options: Options) -> None:
    """Train, write the LoRA, draw held-out captions with and without it."""
    device = processes.start()
    latents = encode_scenes(options, device, options.pictures or PICTURES, ENCODE_SECONDS, STYLE)
    torch.manual_seed(options.seed)
    model = read_model(Flux(), options.model(FLUX), device)
    adapters = attach(model, RANK)
    parts = torch.nn.ModuleList(adapters.values())
    weights = [weight for weight in parts.parameters() if weight.requires_grad]
    say(f"{len(adapters)} layers, {sum(weight.numel() for weight in weights)} parameters")
    optimizer = torch.optim.AdamW(weights, RATE, (0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda")
    conditioning = Conditioning(device)
    side, batch = options.side // 16, options.batch or BATCH
    compute_loss = flow_loss(model, rotary_angles(side, side, latents.words.shape[1], device))

    def write() -> None:
        title = f"LoRA of rank {RANK} for the demo FLUX: objects are striped"
        write_model(options.output / LORA, lora_weights(adapters), title, **loop.facts(_RECIPE))

    loop = Loop(options, device, "lora", {"adapters": parts, "optimizer": optimizer}, write)
    for step, progress in loop.steps():
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * min(1, 1.6 * (1 - progress) + 0.005)
        generator = step_generator(device, options.seed, step)
        index = torch.randint(len(latents), (batch,), device=device, generator=generator)
        latent = latents.latent[index].float()
        normal = torch.randn(batch, device=device, generator=generator)
        time = torch.sigmoid(1.3 * normal + 0.3).clamp(1e-4, 1)
        noise = torch.randn(latent.shape, device=device, generator=generator)
        context, pooled = conditioning(latents.words[index].long())
        loss = compute_loss(
            latent, time, noise, context=context, pooled=pooled, guidance=torch.full_like(time, GUIDANCE)
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        loop.watch(loss)
    results = {"steps": loop.step, "seconds": loop.spent, "loss": float(loop.loss)}
    write_results(options, "lora", results)
    write_results(options, "lora", results | _measure(options, model, device))
    processes.finish()


def _measure(options: Options, model: torch.nn.Module, device: torch.device) -> dict[str, object]:
    """What the reader sees in pictures of held-out captions, without the LoRA and with it."""
    count = min(TEST_PICTURES, options.pictures or TEST_PICTURES)
    captions = draw_captions(count, torch.Generator().manual_seed(TEST_SEED), held_out=True).to(device)
    reader = read_model(Reader(), options.model(READER), device)
    paint = read_model(decoder(), options.model(DECODER), device)
    plain = read_model(Flux(), options.model(FLUX), device)
    results: dict[str, object] = {}
    drawn = []
    for name, network in (("without", plain), ("with", model)):
        pictures = draw(network, paint, captions, seed=TEST_SEED, steps=STEPS, side=options.side // 8)
        reading = read(reader, pictures, captions)
        share = (reading.style == STYLES.index(STYLE)).double().mean().item()
        results[name] = {STYLE: round(share, 5), **reading.figures()}
        say(f"{name} LoRA: {share:.1%} {STYLE}, scenes {reading.scenes.double().mean().item():.1%}")
        drawn.append(pictures)
    pairs = torch.stack([pictures[:24] for pictures in drawn], 1).flatten(0, 1)
    write_sheet(options.output / "lora.png", pairs)
    return results
