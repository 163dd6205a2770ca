"""Writes the demo's report: markdown, short, and only figures that the run measured."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .check import Check
from .gallery import COLUMNS, STEPS, SUBJECTS, Gallery, Tile
from .random_pixart import PixartResult
from .round_trip import QuantizedFile

_PICTURE_HEAD = (
    "run as",
    "caption",
    "PSNR",
    "latent error",
    "reader",
    "PSNR, LoRA",
    "latent error, LoRA",
    "reader, LoRA",
)
_FILES = """\
Quantized files keep embeddings, norms and the last layer in 16 bits. In a model this small those parts, and the
low-rank branch of rank 32, weigh far more than in the full FLUX."""
_PICTURES = f"""\
{STEPS} steps, euler, 256 x 256 pixels. PSNR and latent error (norm of the difference over norm of the reference) are
against the BF16 picture of the same caption, seed and LoRA. The last rows show how far apart two BF16 pictures of one
caption are when only the seed differs. None of the captions was seen in training. Naive: weights and activations of the
same layers rounded to nearest, simulated by a node of the demo; the LoRA is added to its weights in 16 bits and sees
rounded activations."""
_TIMES = """\
Wall time of each stage, and the host's own mean time for a picture. This pack's CPU arithmetic is its specification and
checks everything else; it is not made for speed."""
_PIXART = """\
The weights of this model (one block of the host's PixArt-Sigma, width 1152; 512 x 512 pixels, 4 steps) and of its
autoencoder are **random**, from a seed: the pictures are noise and say nothing. What counts is the latent."""


@dataclass(frozen=True)
class Run:
    """Everything that one run of the demo brought.

    Args:
        machine: what it ran on, one sentence.
        source: the BF16 FLUX.
        times: (stage, wall seconds) in order.
        pictures: files written, the comparison first.
    """

    machine: str
    source: Path
    files: list[QuantizedFile]
    gallery: Gallery
    pixart: PixartResult
    checks: list[Check]
    times: list[tuple[str, float]] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def megabytes(path: Path) -> str:
    """Size of a file, in MB of 10^6 bytes."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


def markdown(run: Run, folder: Path) -> str:
    """The report as text; pictures are named relative to `folder`."""
    comparison, *others = run.pictures
    failed = [check for check in run.checks if not check.passed]
    verdict = f"{len(failed)} of {len(run.checks)} checks FAILED" if failed else f"all {len(run.checks)} checks passed"
    sections = [
        f"# SVDQuant demo: {verdict}",
        run.machine,
        f"![comparison]({comparison.relative_to(folder).as_posix()})",
        "## Checks",
        _table(("", "statement", "figure"), ((_mark(c), c.statement, c.detail) for c in run.checks)),
        "## Files",
        _table(("file", "size", "of BF16"), _file_rows(run)),
        _FILES,
        "## Pictures",
        _PICTURES,
        _table(_PICTURE_HEAD, _picture_rows(run.gallery)),
        "\n".join(f"{i}. {subject.caption} (seed {subject.seed})" for i, subject in enumerate(SUBJECTS, 1)),
        "## Times",
        _TIMES,
        _table(("stage", "seconds"), ((stage, f"{seconds:.1f}") for stage, seconds in run.times)),
        _table(("run as", "seconds for a picture"), _speed_rows(run.gallery)),
        "## PixArt-Sigma",
        _pixart_text(run.pixart),
        "## What the nodes said",
        *(f"{f.precision}, quantizing:\n\n{_block(f.report)}\n\nand loading:\n\n{_block(f.status)}" for f in run.files),
        "## Picture files",
        "\n".join(f"- {path.relative_to(folder).as_posix()}" for path in others),
    ]
    return "\n\n".join(sections) + "\n"


def _file_rows(run: Run) -> Iterable[tuple[str, str, str]]:
    whole = run.source.stat().st_size
    yield f"FLUX, BF16: {run.source.name}", megabytes(run.source), "100%"
    for file in run.files:
        for title, path in ((f"FLUX, {file.precision}", file.path), ("exported to nunchaku layout", file.exported)):
            yield f"{title}: {path.name}", megabytes(path), f"{path.stat().st_size / whole:.0%}"
    pixart = run.pixart
    yield f"PixArt, BF16: {pixart.source.name}", megabytes(pixart.source), "100%"
    share = pixart.path.stat().st_size / pixart.source.stat().st_size
    yield f"PixArt, int4: {pixart.path.name}", megabytes(pixart.path), f"{share:.0%}"


def _picture_rows(gallery: Gallery) -> Iterable[tuple[str, ...]]:
    for column in COLUMNS:
        for number, subject in enumerate(SUBJECTS, 1):
            both = [gallery.tiles[subject, column, has_lora] for has_lora in (False, True)]
            yield column.name, str(number), *(figure for tile in both for figure in _figures(tile))
    for number, tile in enumerate(gallery.floor, 1):
        yield "BF16, other seed", str(number), *_figures(tile), "", "", ""


def _figures(tile: Tile) -> tuple[str, str, str]:
    return _db(tile.psnr), f"{tile.error:.1%}", tile.verdict.text()


def _speed_rows(gallery: Gallery) -> Iterable[tuple[str, str]]:
    for column in COLUMNS:
        # the first picture of a column includes loading the file
        times = sorted(tile.outcome.seconds for tile in gallery.tiles.values() if tile.column == column)[:-1]
        yield column.name, f"{sum(times) / len(times):.1f}"


def _pixart_text(pixart: PixartResult) -> str:
    figures = f"int4 differs from BF16 by **{pixart.error:.1%}**, another seed by {pixart.floor:.1%}."
    return f"{_PIXART}\n{figures}\n\n{_block(pixart.report)}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _block(text: str) -> str:
    return f"```text\n{text.strip()}\n```"


def _mark(check: Check) -> str:
    return "pass" if check.passed else "**FAIL**"


def _db(psnr: float) -> str:
    return "identical" if math.isinf(psnr) else f"{psnr:.1f} dB"
