"""The pictures: captions that anyone can check, in BF16, SVDQuant and naively rounded, with and without a LoRA."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .check import Check
from .client import Client, WorkflowOutcome
from .install import FLUX
from .metrics import is_identical, psnr, relative_error
from .verdict import Verdict

STEPS = 20
OTHER_SEED = 1000  # added to a caption's seed: how much two BF16 pictures of one caption differ


@dataclass(frozen=True)
class Subject:
    """A caption that training never saw, and the seed of its noise."""

    caption: str
    seed: int

    def values(self) -> dict[str, Any]:
        """What a FLUX workflow needs to draw it."""
        return {"caption.caption": self.caption, "sampler.seed": self.seed, "sampler.steps": STEPS}


# the first row is the one that a reader sees: 4 bits of ours must be nearer there than naive ones by a lot
SUBJECTS = (
    Subject("a small yellow ring, a small purple circle and a large green star in a row on a plain blue background", 2),
    Subject("a small red heart above a large yellow star on a striped white background", 1),
    Subject("a large orange circle at the bottom right on a dotted green background", 1),
)


@dataclass(frozen=True)
class Column:
    """One way to run the model.

    Args:
        name: above the column.
        file: "bf16", "naive" (rounded by the demo's own node), or the precision of the quantized file.
        compute: of a quantized file.
        bits: of naively rounded weights and activations.
    """

    name: str
    file: str
    compute: str = ""
    bits: int = 0

    @property
    def is_reference(self) -> bool:
        return self.file == "bf16"

    @property
    def is_svdquant(self) -> bool:
        return self.file not in ("bf16", "naive")


COLUMNS = (
    Column("BF16", "bf16"),
    Column("W4A8", "int4", "w4a8"),
    Column("W4A4", "int4", "w4a4"),
    Column("NVFP4", "nvfp4", "w4a4"),
    Column("Naive 4 bits", "naive", bits=4),
    Column("Naive 3 bits", "naive", bits=3),
)


@dataclass(frozen=True)
class Tile:
    """One picture of the gallery, measured against the BF16 picture of the same caption, seed and LoRA."""

    subject: Subject
    column: Column
    has_lora: bool
    outcome: WorkflowOutcome
    psnr: float
    error: float
    verdict: Verdict


Reader = Callable[[np.ndarray, str], Verdict]
Tiles = dict[tuple[Subject, Column, bool], Tile]  # by caption, way to run, and whether the LoRA is on


@dataclass(frozen=True)
class Gallery:
    """All tiles, what they prove, and how far apart two BF16 pictures are.

    Args:
        floor: for each subject, BF16 with another seed, measured against its BF16 tile without LoRA.
    """

    tiles: Tiles
    floor: list[Tile]
    checks: list[Check]


def draw(client: Client, files: Mapping[str, str], judge: Reader, say: Callable[[str], None]) -> Gallery:
    """Draw every subject in every column, with and without the LoRA.

    Args:
        files: precision -> name of its quantized file among the host's diffusion models.
        judge: says of a picture and a caption whether they agree.
    """
    outcomes = {}
    for column in COLUMNS:
        for has_lora in (False, True):
            seconds = 0.0
            for subject in SUBJECTS:
                outcome = client.run(_workflow(column, has_lora), subject.values() | _model(column, files))
                outcomes[subject, column, has_lora] = outcome
                seconds += outcome.seconds
            lora = "with" if has_lora else "without"
            say(f"{column.name} {lora} LoRA: {len(SUBJECTS)} pictures in {seconds:.1f} s")
    references = {(s, lora): o for (s, c, lora), o in outcomes.items() if c.is_reference}
    tiles = {
        (s, c, lora): _tile(s, c, has_lora=lora, outcome=o, reference=references[s, lora], judge=judge)
        for (s, c, lora), o in outcomes.items()
    }

    floor = []
    for subject in SUBJECTS:
        other = client.run("flux_bf16", subject.values() | {"sampler.seed": subject.seed + OTHER_SEED})
        floor.append(
            _tile(subject, COLUMNS[0], has_lora=False, outcome=other, reference=references[subject, False], judge=judge)
        )
    say(f"BF16 with another seed: latent error {min(tile.error for tile in floor):.1%} and more")

    checks = [
        _captions_are_right(tiles),
        _nearer_than_other_seed(tiles, floor),
        _nearer_than_naive(tiles),
        _lora_has_its_effect(tiles),
    ]
    for column in (COLUMNS[2], COLUMNS[3]):
        stock = client.run("flux_svdquant_stock_lora", SUBJECTS[0].values() | _model(column, files))
        checks.append(_same_lora_picture(tiles[SUBJECTS[0], column, True], stock))
        say(f"{column.name} with the stock LoRA loader: {'identical' if checks[-1].passed else 'NOT identical'}")
    return Gallery(tiles, floor, checks)


def _workflow(column: Column, has_lora: bool) -> str:
    kind = "flux_svdquant" if column.is_svdquant else f"flux_{column.file}"
    return kind + ("_lora" if has_lora else "")


def _model(column: Column, files: Mapping[str, str]) -> dict[str, Any]:
    if column.is_svdquant:
        return {"model.model_name": files[column.file], "model.compute": column.compute}
    return {} if column.is_reference else {"model.model_name": FLUX, "model.bits": column.bits}


def _tile(
    subject: Subject,
    column: Column,
    *,
    has_lora: bool,
    outcome: WorkflowOutcome,
    reference: WorkflowOutcome,
    judge: Reader,
) -> Tile:
    error = relative_error(outcome.latent, reference.latent)
    verdict = judge(outcome.image, subject.caption)
    return Tile(subject, column, has_lora, outcome, psnr(outcome.image, reference.image), error, verdict)


def _captions_are_right(tiles: Tiles) -> Check:
    judged = [tile for tile in tiles.values() if tile.column.is_svdquant or tile.column.is_reference]
    wrong = [tile for tile in judged if not tile.verdict.is_right]
    names = ", ".join(f"{t.column.name}{' with LoRA' if t.has_lora else ''}: {t.subject.caption}" for t in wrong)
    return Check(
        "The reader finds every caption right in BF16, W4A8, W4A4 and NVFP4",
        not wrong,
        f"{len(judged) - len(wrong)} of {len(judged)} right" + (f"; wrong in {names}" if wrong else ""),
    )


def _nearer_than_naive(tiles: Tiles) -> Check:
    """Over all pictures; of a single one chance may say otherwise."""
    errors = {column: [t.error for t in tiles.values() if t.column == column] for column in COLUMNS}
    means = {column: sum(of) / len(of) for column, of in errors.items()}
    worst = max(mean for column, mean in means.items() if column.is_svdquant)
    naive = next(mean for column, mean in means.items() if column.bits == 4)
    return Check(
        "SVDQuant's pictures are nearer to BF16 than naive 4 bits",
        worst < naive,
        f"mean latent error {worst:.1%} at most, naive {naive:.1%}",
    )


def _nearer_than_other_seed(tiles: Tiles, floor: list[Tile]) -> Check:
    """4 bits must move pictures less than another seed does, or they do not draw the same pictures.

    Over all captions: where one large object stands in a place that the caption names, a seed decides little.
    """
    errors = {c: [t.error for t in tiles.values() if t.column == c] for c in COLUMNS if c.is_svdquant}
    worst = max(sum(of) / len(of) for of in errors.values())
    other = sum(tile.error for tile in floor) / len(floor)
    return Check(
        "SVDQuant's pictures are nearer to BF16 than BF16 with another seed",
        worst < other,
        f"mean latent error {worst:.1%} at most, other seed {other:.1%}",
    )


def _lora_has_its_effect(tiles: Tiles) -> Check:
    """With the LoRA, a quantized picture must be nearer to BF16 with the LoRA than to BF16 without it."""
    ratios = []
    for (subject, column, has_lora), tile in tiles.items():
        if has_lora and column.is_svdquant:
            plain = tiles[subject, COLUMNS[0], False]
            ratios.append(tile.error / relative_error(tile.outcome.latent, plain.outcome.latent))
    return Check(
        "The LoRA does to the quantized model what it does to BF16",
        max(ratios) < 0.5,
        f"distance to BF16 with the LoRA is at most {max(ratios):.2f} of the distance to BF16 without it",
    )


def _same_lora_picture(tile: Tile, stock: WorkflowOutcome) -> Check:
    ours = tile.outcome
    return Check(
        f"{tile.column.name}: LoraLoaderModelOnly and SVDQuantLoraLoader give the same picture",
        is_identical(stock.latent, stock.image, ours.latent, ours.image),
        f"latent difference {relative_error(stock.latent, ours.latent):.1e}",
    )
