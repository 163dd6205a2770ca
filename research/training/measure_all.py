"""Measures the models on captions that training never saw: the reader's verdict and the fit of the outlines.

Real drawings, and drawings through the autoencoder, say what the two measures themselves can reach.
"""

from typing import Any

import torch
from torch import Tensor

from ...demo.captions import Captions, draw_captions
from ...demo.install import DECODER, ENCODER, FLUX, READER
from ...demo.model_files import read_model
from ...demo.reader import Reader, Reading, read
from . import processes
from .loop import say, write_results
from .many_pictures import write_sheet
from .options import Options
from .outline import outline_figures, outline_overlaps, shape_overlaps
from .renderer import place, render
from .sampler import decode, draw
from .small_flux import Flux
from .taef1 import decoder, encoder

PICTURES, DIFFICULT_PICTURES, SEED = 1024, 512, 5
STEPS = (20, 8, 4)
_BATCH = 128


def run(options: Options) -> None:
    """Draw, measure, write the figures after each set, and a sheet with the failures at its end."""
    device = processes.start()
    count = options.pictures or PICTURES
    generator = torch.Generator().manual_seed(SEED)
    usual = draw_captions(count, generator, held_out=True)
    difficult = draw_captions(options.pictures or DIFFICULT_PICTURES, generator, held_out=True, difficult=True)
    usual, difficult = usual.to(device), difficult.to(device)
    judge = _Judge(options, device)
    model = read_model(Flux(), options.model(FLUX), device)
    for name, captions in (("usual", usual), ("difficult", difficult)):
        real = judge.render(captions)
        judge.record(f"{name}, real drawings", real, captions)
        judge.record(f"{name}, drawings through the autoencoder", judge.reconstruct(real), captions)
        del real
    shown: list[Tensor] = []
    failures: list[Tensor] = []
    for name, captions, steps in (
        ("usual", usual, STEPS[0]),
        ("difficult", difficult, STEPS[0]),
        *(("usual", usual, steps) for steps in STEPS[1:]),
    ):
        pictures = draw(model, judge.decoder, captions, seed=SEED, steps=steps, side=options.side // 8)
        reading = judge.record(f"{name}, {steps} steps", pictures, captions)
        if steps == STEPS[0]:
            shown.append(pictures[:32].cpu())
            failures.append(pictures[~reading.scenes][:16].cpu())
            judge.results[f"{name}, failures"] = _texts(captions[~reading.scenes][:16])
            write_results(options, "evaluation", judge.results)
            write_sheet(options.output / "samples.png", torch.cat(shown + failures))
    processes.finish()


class _Judge:
    """The reader and the autoencoder, and what was found so far."""

    def __init__(self, options: Options, device: torch.device) -> None:
        self._options, self._device = options, device
        self._reader = read_model(Reader(), options.model(READER), device)
        self._encoder = read_model(encoder(), options.model(ENCODER), device).to(memory_format=torch.channels_last)
        self.decoder = read_model(decoder(), options.model(DECODER), device).to(memory_format=torch.channels_last)
        self.results: dict[str, Any] = {}

    def render(self, captions: Captions) -> Tensor:
        """The captions as they should look."""
        placement = place(captions, torch.Generator(self._device).manual_seed(SEED))
        parts = [slice(start, start + _BATCH) for start in range(0, len(captions), _BATCH)]
        return torch.cat([render(captions[part], placement[part], size=self._options.side) for part in parts])

    @torch.no_grad()
    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Pictures through the autoencoder."""
        parts = []
        for part in pictures.split(_BATCH):
            with torch.autocast(part.device.type, torch.bfloat16, enabled=part.is_cuda):
                parts.append(self._encoder(part.contiguous(memory_format=torch.channels_last)).float())
        return decode(self.decoder, torch.cat(parts))

    def record(self, name: str, pictures: Tensor, captions: Captions) -> Reading:
        """Measure pictures and write all figures so far."""
        reading = read(self._reader, pictures, captions)
        figures: dict[str, Any] = {"pictures": len(pictures), **reading.figures()}
        if self._options.side == 256:
            overlaps = outline_overlaps(pictures, captions)
            figures |= outline_figures(overlaps)
            figures["mean IoU by shape"] = shape_overlaps(overlaps, captions)
        self.results[name] = figures
        write_results(self._options, "evaluation", self.results)
        say(f"{name}: scenes {figures['scene']:.2%}, IoU {figures.get('mean IoU', float('nan')):.4f}")
        return reading


def _texts(captions: Captions) -> list[str]:
    return captions.texts() if len(captions) else []
