"""Trains the reader on fresh drawings, half of them blurred and all of them noisy, so that soft edges are no error."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...demo.captions import STYLES, draw_captions
from ...demo.install import READER
from ...demo.model_files import write_model
from ...demo.reader import SIDE, Reader, read, reading_loss
from . import processes
from .loop import Loop, say, step_generator, write_results
from .options import Options
from .renderer import place, render

BATCH, RATE = 256, 1e-3
FILLED_SHARE = 0.5
READ_STYLES = tuple(style for style in STYLES if style != "night")  # there a black object cannot be seen
_OTHER_SHARE = (1 - FILLED_SHARE) / (len(READ_STYLES) - 1)
_STYLE_WEIGHTS = dict.fromkeys(STYLES, 0.0) | dict.fromkeys(READ_STYLES, _OTHER_SHARE) | {"filled": FILLED_SHARE}
_TEST_PICTURES = 1024


def run(options: Options) -> None:
    """Train, write the reader, measure it on held-out scenes."""
    device = processes.start()
    torch.manual_seed(options.seed)
    reader = Reader().to(device)
    optimizer = torch.optim.AdamW(reader.parameters(), RATE, weight_decay=0.01, fused=device.type == "cuda")
    batch = options.batch or BATCH
    weights = torch.tensor([_STYLE_WEIGHTS[style] for style in STYLES], device=device)

    def write() -> None:
        facts = loop.facts("cross-entropy on fresh drawings in all styles but night, with blur and noise")
        write_model(options.output / READER, reader.state_dict(), "Reader of the demo's scenes", **facts)

    loop = Loop(options, device, "reader", {"reader": reader, "optimizer": optimizer}, write)
    for step, progress in loop.steps():
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100) * min(1, 2 * (1 - progress) + 0.01)
        generator = step_generator(device, options.seed, step)
        captions = draw_captions(batch, generator, weighted=bool(step % 2))
        style = torch.multinomial(weights, batch, replacement=True, generator=generator)
        pictures = _spoil(render(captions, place(captions, generator), style, size=SIDE), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            scores = reader(pictures)
        loss = reading_loss({name: score.float() for name, score in scores.items()}, captions, style)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loop.watch(loss)
    results = {"steps": loop.step, "seconds": loop.spent, **measure(reader.eval(), options, device)}
    write_results(options, "reader", results)
    processes.finish()


def measure(reader: Reader, options: Options, device: torch.device) -> dict[str, float]:
    """Shares of held-out drawings that it reads right, by style."""
    generator = torch.Generator(device).manual_seed(0)
    captions = draw_captions(min(_TEST_PICTURES, 4 * (options.batch or BATCH)), generator, held_out=True)
    placement = place(captions, generator)
    results = {}
    for style in READ_STYLES:
        reading = read(reader, render(captions, placement, style, size=SIDE), captions)
        results[f"scenes, {style}"] = reading.scenes.double().mean().item()
        results[f"style, {style}"] = (reading.style == STYLES.index(style)).double().mean().item()
        say(f"{style}: scenes {results[f'scenes, {style}']:.2%}, style {results[f'style, {style}']:.2%}")
    return results


def _spoil(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Blur every second picture, add noise and a tint."""
    device, count = pictures.device, len(pictures)
    blurred = F.avg_pool2d(F.pad(pictures[::2], (1,) * 4, mode="replicate"), 3, 1)
    pictures = torch.stack([blurred, pictures[1::2]], 1).flatten(0, 1) if count % 2 == 0 else pictures
    noise = torch.randn(pictures.shape, device=device, generator=generator)
    strength = 0.05 * torch.rand(count, 1, 1, 1, device=device, generator=generator)
    tint = 0.03 * torch.randn(count, 3, 1, 1, device=device, generator=generator)
    return pictures + strength * noise + tint
