"""Writes what was measured: evaluation.md with all tables and two plots. A run that was stopped gets what it has."""

from pathlib import Path

from ...demo.install import LORA
from . import tables
from .chart import Chart, Series
from .findings import Findings
from .methods import BITS, RANKS, TITLES, USUAL_RANK
from .record import REFERENCE, RESEED

FILE, BITS_PLOT, RANK_PLOT = "evaluation.md", "quality_bits.png", "quality_rank.png"
_MEASURES = """\
Everything compares with the unquantized model on the same caption, noise and number of steps, computed in float32 on
the BF16 weights. **Latent error**: norm of the difference of the last latents over norm of the unquantized ones.
**PSNR, SSIM**: of the pictures. **IoU**: overlap of each drawn outline with the shape that the caption asks for, laid
over it as well as it will go; no comparison with the unquantized picture. **Scenes right**: a reader network finds
every shape, colour, size, place, ground and texture of the caption{reader}. After ± stands half the 95 % interval, by
bootstrap over captions. "Other seeds" is how far two unquantized pictures of one caption are apart.

LPIPS and FID are not here: both need the weights of a network trained on photographs, which this evaluation does not
download, and FID would compare with photographs that nobody has of such scenes. ImageReward likewise."""
_METHODS = """\
All methods get the same recorded inputs ({calibration} training captions) except where it says "no data" or "from the
weights alone": there the model ran on noise once, as the pack does without a recording. All quantize the same layers;
modulation layers get 4-bit weights at up to 4 bits. DeepCompressor's recipe is its steps as written down in
`research/baselines.py`, not its program. Every method runs through one simulation of quantized arithmetic; one table
compares it with the pack's kernels."""


def write_report(output: Path) -> list[Path]:
    """Write report and plots beside OUTPUT/results.json; return their paths."""
    findings = Findings.read(output)
    paths = [output / FILE, output / BITS_PLOT, output / RANK_PLOT]
    bits_plot(findings).draw().save(paths[1])
    rank_plot(findings).draw().save(paths[2])
    paths[0].write_text(report(findings), encoding="utf-8")
    return paths


def report(findings: Findings) -> str:
    """The report as markdown."""
    own = findings.found[REFERENCE]
    hard = int(findings.is_hard.sum())
    most = findings.steps[0]
    sections = [
        "# Quality, measured on the demo's FLUX",
        f"{len(findings.is_hard) - hard} captions that training never saw, and {hard} hard ones (small stars or rings "
        f"on a dark ground). {own['machine']}. {len(findings.measured_ways)} ways to quantize.",
        _MEASURES.format(reader="" if findings.has_reader else " (its weights were not there)"),
        _METHODS.format(calibration=own["calibration"]),
        *(part for steps in findings.steps for part in (f"## {steps} steps", tables.headline(findings, steps))),
        "## Ways to handle outliers, W4A4",
        tables.comparison(findings, tables.OUTLIERS),
        "## W4A8 and NVFP4",
        tables.comparison(findings, tables.OTHER_FORMATS),
        f"## Bits, {most} steps",
        f"![Quality against bits]({BITS_PLOT})",
        *(tables.by_bits(findings, measure) for measure in ("error", "psnr")),
        "Up to 4 bits groups of 64 share a scale, above whole channels and tokens do, as in the paper.",
        "## Below four bits",
        tables.below_four(findings),
        f"## Ranks, {most} steps",
        f"![Quality against rank]({RANK_PLOT})",
        tables.by_rank(findings),
        f"## Calibration and GPTQ, {most} steps",
        tables.by_data(findings),
        f"## The LoRA {LORA} at strength 1, {most} steps",
        "Effect: what the LoRA changes in the last latents. Kept: how much of the change that it makes to the "
        "unquantized model it makes to this one. Latent error here compares with the unquantized model with the LoRA.",
        tables.lora(findings),
        f"## The pack's kernels, {most} steps",
        tables.by_kernels(findings),
        f"## Latent error on the way, {most} steps, %",
        tables.by_step(findings),
        "## What every row above contains",
        tables.sources_of_error(findings),
        "## Orderings of the paper",
        tables.orderings(findings),
    ]
    return "\n\n".join(_with_content(sections)) + "\n"


def _with_content(sections: list[str]) -> list[str]:
    """Without headings that nothing stands under, and without empty tables."""
    filled = [section for section in sections if section]
    return [
        section
        for section, following in zip(filled, [*filled[1:], "## end"], strict=True)
        if not (section.startswith("## ") and following.startswith("## "))
    ]


def bits_plot(findings: Findings) -> Chart:
    """Latent error against bits of weights and activations."""
    names = {TITLES[method]: {bits: f"{method}_w{bits}a{bits}" for bits in BITS} for method in tables.LOW_BITS}
    return _chart(findings, "Latent error against bits (weights and activations)", "bits", names, sorted(BITS))


def rank_plot(findings: Findings) -> Chart:
    """Latent error against the rank of the branch."""
    ranks = sorted((*RANKS, USUAL_RANK))
    names = {title: dict(zip(ranks, of, strict=True)) for title, of in tables.rank_series().items()}
    return _chart(findings, "Latent error against the rank of the 16-bit branch", "rank", names, ranks)


def _chart(findings: Findings, title: str, axis: str, names: dict[str, dict[int, str]], places: list[int]) -> Chart:
    steps = findings.steps[0]
    series = []
    for label, of in names.items():
        points = {place: findings.estimate(name, steps, "error") for place, name in of.items()}
        found = {place: (e.mean, e.low, e.high) for place, e in points.items() if e is not None}
        if found:
            series.append(Series(label, found))
    floor = findings.estimate(RESEED, steps, "error")
    line = (("another seed", floor.mean),) if floor else ()
    count = int((~findings.is_hard).sum())
    note = f"mean over {count} captions, {steps} steps; bars: 95 % intervals"
    return Chart(title, note, axis, [str(place) for place in places], places, series, line)
