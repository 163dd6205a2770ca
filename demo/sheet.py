"""Writes the pictures of a run: each by itself, and all on one comparison sheet."""

from pathlib import Path

from PIL import Image

from .gallery import COLUMNS, STEPS, SUBJECTS, Tile
from .picture import Cell, Group, compose
from .report import Run, megabytes

TITLE = "SVDQuant on a tiny FLUX"
SUBTITLE = (
    f"8.2 M parameters, trained for this demo · captions never seen in training · 256 px, {STEPS} steps · "
    "same seed along a row · figures: against BF16"
)
NOTES = (
    "W4A8: int4 weights, int8 activations.   W4A4: int4 weights and activations, the same file.   "
    "NVFP4: FP4 weights and activations.",
    "Each with a 16-bit branch of rank 32. MB: size of the model file. "
    "Below each picture, whether a reader network finds all of the caption.",
    "Naive: weights and activations of the same layers rounded to nearest in groups of 64, no smoothing, no branch; "
    "simulated, so no file.",
)


def write(run: Run, folder: Path) -> list[Path]:
    """Write comparison.png and images/*.png; return the paths, the comparison first."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    paths = [folder / "comparison.png"]
    _compose(run).save(paths[0])
    for tile in run.gallery.tiles.values():
        lora = "_lora" if tile.has_lora else ""
        paths.append(
            images / f"{SUBJECTS.index(tile.subject) + 1}_{tile.column.name.lower().replace(' ', '_')}{lora}.png"
        )
        Image.fromarray(tile.outcome.image).save(paths[-1])
    for name, outcome in (("bf16", run.pixart.bf16), ("int4", run.pixart.quantized)):
        paths.append(images / f"pixart_random_weights_{name}.png")
        Image.fromarray(outcome.image).save(paths[-1])
    return paths


def _compose(run: Run) -> Image.Image:
    sizes = {"bf16": megabytes(run.source), "naive": ""} | {file.precision: megabytes(file.path) for file in run.files}
    columns = [(column.name, sizes[column.file]) for column in COLUMNS]
    groups = [
        Group(heading, columns, [[_cell(run.gallery.tiles[s, c, has_lora]) for c in COLUMNS] for s in SUBJECTS])
        for heading, has_lora in (("Without LoRA", False), ("With LoRA: striped shapes", True))
    ]
    captions = [subject.caption[0].upper() + subject.caption[1:] for subject in SUBJECTS]
    return compose(TITLE, SUBTITLE, captions, groups, [*NOTES, _scale(run)])


def _scale(run: Run) -> str:
    """What the figures mean: how far apart two good pictures of one caption are."""
    errors, psnrs = ([getattr(tile, name) for tile in run.gallery.floor] for name in ("error", "psnr"))
    return (
        f"For scale, BF16 without LoRA against itself with another seed: PSNR {min(psnrs):.1f} to {max(psnrs):.1f} dB, "
        f"latent error {min(errors):.0%} to {max(errors):.0%}."
    )


def _cell(tile: Tile) -> Cell:
    figures = (None, None) if tile.column.is_reference else (tile.psnr, tile.error)
    return Cell(tile.outcome.image, *figures, tile.verdict.text(), tile.verdict.is_right)
