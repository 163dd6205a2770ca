"""How far pictures are from those of the unquantized model, one figure for each caption."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...demo.captions import STYLES
from ...demo.install import LORA, MODELS, READER
from ...demo.model_files import read_model
from ...demo.reader import Reader, read
from ...svdq_core.picture_metrics import psnr, ssim
from ..training.outline import outline_overlaps
from ..training.taef1 import decoder
from .evaluated_scenes import Scenes
from .network import DECODER, latents_by_step

PICTURES = 32  # decoded at once
# What a table may ask for; error, psnr and ssim compare with the unquantized model, the others with the caption.
NAMES = ("error", "psnr", "ssim", "iou", "read")

LORA_STYLE = STYLES.index(LORA.partition("_")[0])

Figures = dict[str, Tensor]  # name -> (B,) or, for error_by_step, (steps, B); float32 on the CPU


@dataclass(frozen=True)
class PlainDrawings:
    """What the unquantized model draws.

    Args:
        latents: (steps, B, 16, 32, 32) after each step. pictures: (B, 256, 256, 3).
    """

    latents: Tensor
    pictures: Tensor


def relative_errors(latents: Tensor, reference: Tensor) -> Tensor:
    """Norm of the difference over norm of the reference, for each picture: (B, ...) -> (B,)."""
    return (latents - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)


class SceneJudge:
    """The autoencoder, and the reader where its weights are there."""

    def __init__(self, device: torch.device) -> None:
        self._decoder = read_model(decoder(), MODELS / DECODER, device)
        self._reader = read_model(Reader(), MODELS / READER, device) if (MODELS / READER).exists() else None

    @torch.no_grad()
    def draw(self, latents: Tensor) -> Tensor:
        """Latents (B, 16, h, w) -> pictures (B, 8 h, 8 w, 3) float32 in 0...1."""
        return torch.cat([self._decoder(p).clamp(0, 1).movedim(1, -1).contiguous() for p in latents.split(PICTURES)])

    def reference(self, model: nn.Module, scenes: Scenes, steps: int) -> PlainDrawings:
        """Draw the scenes with the unquantized model."""
        latents = torch.stack(list(latents_by_step(model, scenes, scenes.noise, steps)))
        return PlainDrawings(latents, self.draw(latents[-1]))

    def compare(
        self, model: nn.Module, scenes: Scenes, noise: Tensor, reference: PlainDrawings, half: bool = False
    ) -> tuple[Figures, Tensor]:
        """Draw with another model, or from other noise; return all figures and the last latents."""
        steps, errors, latents = len(reference.latents), [], noise
        for step, latents in enumerate(latents_by_step(model, scenes, noise, steps, half)):
            errors.append(relative_errors(latents, reference.latents[step]))
        pictures = self.draw(latents)
        pairs = list(zip(pictures.split(PICTURES), reference.pictures.split(PICTURES), strict=True))
        figures = {
            "error_by_step": torch.stack(errors),
            "error": errors[-1],
            "psnr": torch.cat([psnr(*pair) for pair in pairs]),
            "ssim": torch.cat([ssim(*pair) for pair in pairs]),
            **self.verdict(pictures, scenes),
        }
        return {name: values.float().cpu() for name, values in figures.items()}, latents

    def verdict(self, pictures: Tensor, scenes: Scenes) -> Figures:
        """What needs no reference: overlap of the objects' outlines with the caption's shapes, and the reader's word.

        Returns:
            iou: mean over a caption's objects. read: 1 where the reader finds everything right; left out without a
            reader. style: 1 where it sees the style that the LoRA gives.
        """
        upright = pictures.movedim(-1, 1)
        figures = {"iou": outline_overlaps(upright, scenes.captions).nanmean(dim=1)}
        if self._reader is not None:
            reading = read(self._reader, upright, scenes.captions)
            figures |= {"read": reading.scenes, "style": reading.style == LORA_STYLE}
        return {name: values.float().cpu() for name, values in figures.items()}


def lora_effect(plain: Tensor, with_lora: Tensor, reference: Tensor, reference_with_lora: Tensor) -> Figures:
    """What a LoRA does to one model's latents against what it does to the unquantized model's, for each picture.

    Args:
        plain, with_lora: latents of the model; the other two, of the unquantized one.

    Returns:
        kept: share of the reference's change that this model makes, too (1: all of it).
        effect_error: norm of the difference of the changes over norm of the reference's change.
    """
    change, expected = ((a - b).flatten(1) for a, b in ((with_lora, plain), (reference_with_lora, reference)))
    square = expected.square().sum(dim=1)
    return {
        "kept": ((change * expected).sum(dim=1) / square).cpu(),
        "effect_error": ((change - expected).square().sum(dim=1) / square).sqrt().cpu(),
    }
