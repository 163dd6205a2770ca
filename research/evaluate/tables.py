"""The tables of the report, in the shape of the paper's: markdown, every figure with half its 95 % interval."""

from collections.abc import Iterable, Iterator, Sequence

from .findings import MISSING, UNITS, Findings
from .methods import BITS, RANKS, TITLES, USUAL_RANK, Way
from .orderings import ORDERINGS, verdict
from .record import REFERENCE, RESEED

HEADLINE = (
    "paper_w8a8",
    "pack_best_int8_w4a8_r32_calibrated",
    "nf4_w4a16",
    "pack_best_int4_w4a8_r32_calibrated",
    "nearest_w4a4",
    "paper_w4a4",
    "deepcompressor_gptq_w4a4",
    "pack_fast_int4_w4a4_r32_no_data",
    "pack_best_int4_w4a4_r32_calibrated",
    "nearest_nvfp4",
    "deepcompressor_gptq_nvfp4",
    "pack_best_nvfp4_w4a4_r32_calibrated",
    "nearest_w3a3",
)
OUTLIERS = (
    "nearest_w4a4",
    "smoothquant_w4a4",
    "hadamard_w4a4",
    "lorc_w4a4",
    "svd_w4a4",
    "paper_w4a4",
    "deepcompressor_w4a4",
    "deepcompressor_gptq_w4a4",
    "pack_fast_int4_w4a4_r32_no_data",
    "pack_best_int4_w4a4_r32_calibrated",
)
OTHER_FORMATS = tuple(
    name.format(f) for f in ("w4a8", "nvfp4") for name in ("nearest_{}", "paper_{}", "deepcompressor_gptq_{}")
)
LOW_BITS = ("nearest", "smoothquant", "paper", "best")
SHOWN_STEPS = (1, 2, 5, 10, 15, 20)
MEASURES = ("error", "psnr", "ssim", "iou", "read")

Row = Sequence[str]


def markdown(head: Row, rows: Iterable[Row]) -> str:
    """A table; empty if it has no rows."""
    lines = [list(row) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]) if lines else ""


def headline(findings: Findings, steps: int) -> str:
    """The paper's table 1: precision, method, quality."""
    head = ["precision", "method", *(UNITS[m] for m in MEASURES), "hard set: latent error, %", "hard set: IoU"]

    def row(label: str, title: str, name: str) -> Row:
        usual = [findings.cell(name, steps, measure) for measure in MEASURES]
        return [label, title, *usual, *(findings.cell(name, steps, m, "hard") for m in ("error", "iou"))]

    rows = [row("BF16", "unquantized", REFERENCE)]
    rows += [row(way.label, way.title, way.name) for way in _ways(findings, HEADLINE)]
    return markdown(head, [*rows, row("BF16", "unquantized, other seeds", RESEED)])


def comparison(findings: Findings, names: Sequence[str]) -> str:
    """Methods against each other at every number of steps."""
    measures = ("error", "psnr", "iou")
    head = ["precision", "method", *(f"{UNITS[m]}, {s} steps" for s in findings.steps for m in measures)]
    head.append("hard set: latent error, %")
    return markdown(
        head,
        (
            [
                way.label,
                way.title,
                *(findings.cell(way.name, s, m) for s in findings.steps for m in measures),
                findings.cell(way.name, findings.steps[0], "error", "hard"),
            ]
            for way in _ways(findings, names)
        ),
    )


def by_bits(findings: Findings, measure: str) -> str:
    """Equal widths of weights and activations; groups of 64 up to 4 bits, whole channels and tokens above."""
    names = [[_of_bits(method, bits) for bits in BITS] for method in LOW_BITS]
    rows = [
        [TITLES[method], *(findings.cell(name, findings.steps[0], measure) for name in row)]
        for method, row in zip(LOW_BITS, names, strict=True)
    ]
    return markdown([UNITS[measure], *(f"{bits} bits" for bits in BITS)], _not_empty(rows, 1))


def below_four(findings: Findings) -> str:
    """Three bits of weights, with four and with three of activations."""
    names = [f"{method}_{bits}" for bits in ("w4a4", "w3a4", "w3a3") for method in LOW_BITS]
    return comparison(findings, names)


def by_rank(findings: Findings) -> str:
    """Latent error by the rank of the branch."""
    rows = [
        [title, *(findings.cell(name, findings.steps[0], "error") for name in names)]
        for title, names in rank_series().items()
    ]
    ranks = sorted((*RANKS, USUAL_RANK))
    return markdown([UNITS["error"], *(f"rank {rank}" for rank in ranks)], _not_empty(rows, 1))


def rank_series() -> dict[str, list[str]]:
    """Title -> names of ways by rising rank."""
    ranks = sorted((*RANKS, USUAL_RANK))
    return {
        "SVDQuant, as in the paper, W4A4": [f"paper_w4a4_r{r}" if r != USUAL_RANK else "paper_w4a4" for r in ranks],
        "ours, fast, no data, W4A4": [f"pack_fast_int4_w4a4_r{r}_no_data" for r in ranks],
        "ours, best, W4A4": [f"pack_best_int4_w4a4_r{r}_calibrated" for r in ranks],
        "ours, best, W4A8": [f"pack_best_int4_w4a8_r{r}_calibrated" for r in ranks],
    }


def by_data(findings: Findings) -> str:
    """What calibration and GPTQ are worth: latent error."""
    formats = (("INT W4A4", "int4_w4a4"), ("INT W4A8", "int4_w4a8"), ("NVFP4 W4A4", "nvfp4_w4a4"))
    kinds = (("fast", "no_data"), ("fast", "calibrated"), ("best", "no_data"), ("best", "calibrated"))
    words = {"fast": "no GPTQ", "best": "GPTQ", "no_data": "from the weights alone", "calibrated": "calibrated"}
    rows = [
        [label, *(findings.cell(f"pack_{m}_{form}_r32_{data}", findings.steps[0], "error") for m, data in kinds)]
        for label, form in formats
    ]
    return markdown([UNITS["error"], *(f"{words[d]}, {words[m]}" for m, d in kinds)], _not_empty(rows, 1))


def lora(findings: Findings) -> str:
    """The same LoRA on every model: what of its effect arrives."""
    head = ["precision", "method", "effect kept, %", "difference of the effects, %", "reader sees the style, %"]
    head += ["latent error, %", "PSNR, dB", "latent error without LoRA, %"]
    rows = [["BF16", "unquantized", MISSING, MISSING, findings.cell(REFERENCE, "lora", "style"), *[MISSING] * 3]]
    for way in findings.measured_ways:
        if findings.values(way.name, "lora", "kept") is not None:
            measures = ("kept", "effect_error", "style", "error", "psnr")
            cells = [findings.cell(way.name, "lora", measure) for measure in measures]
            rows.append([way.label, way.title, *cells, findings.cell(way.name, findings.steps[0], "error")])
    return markdown(head, rows if len(rows) > 1 else [])


def by_kernels(findings: Findings) -> str:
    """The pack's own kernels against the simulation of the same files."""
    head = ["precision", "latent error simulated, %", "by the kernels, %", "paired difference, points"]
    rows = []
    for way in findings.measured_ways:
        simulated = way.name.removeprefix("kernels_")
        difference = findings.difference(simulated, way.name, findings.steps[0]) if way.kind == "kernels" else None
        if difference is not None:
            cells = [findings.cell(name, findings.steps[0], "error") for name in (simulated, way.name)]
            rows.append([way.label, *cells, f"{100 * difference.mean:+.2f} ± {100 * difference.half_width:.2f}"])
    return markdown(head, rows)


def by_step(findings: Findings) -> str:
    """How the latent error grows on the way from noise to picture."""
    steps = findings.steps[0]
    shown = [step for step in SHOWN_STEPS if step <= steps]
    rows = []
    for label, title, name in (*_titles(findings, HEADLINE), ("BF16", "unquantized, other seeds", RESEED)):
        values = findings.values(name, steps, "error_by_step")
        if values is not None:
            rows.append([label, title, *(f"{100 * float(values[step - 1].mean()):.2f}" for step in shown)])
    return markdown(["precision", "method", *(f"after step {step}" for step in shown)], rows)


def sources_of_error(findings: Findings) -> str:
    """Pieces that are in every row above: modulation layers, and 16-bit arithmetic itself."""
    return comparison(findings, ("arithmetic", "modulation", "modulation_mean"))


def orderings(findings: Findings) -> str:
    """Every claim, and whether it holds here."""
    head = ["source", "nearer to 16 bits", "than", "steps", "difference of latent errors, points", "here", "why not"]
    rows = []
    for ordering in ORDERINGS:
        found = verdict(findings, ordering)
        nearer, farther = (findings.way(name) for name in (ordering.nearer, ordering.farther))
        if found is not None and nearer is not None and farther is not None:
            why = "" if found[0] == "holds" else ordering.reason
            rows.append([ordering.source, _name(nearer), _name(farther), str(ordering.steps), found[1], found[0], why])
    return markdown(head, rows)


def _name(way: Way) -> str:
    return f"{way.label} {way.title}" + (f", rank {way.rank}" if way.rank != USUAL_RANK else "")


def _of_bits(method: str, bits: int) -> str:
    return f"{method}_w{bits}a{bits}"


def _ways(findings: Findings, names: Sequence[str]) -> Iterator[Way]:
    yield from (way for way in map(findings.way, names) if way is not None)


def _titles(findings: Findings, names: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(way.label, way.title, way.name) for way in _ways(findings, names)]


def _not_empty(rows: list[list[str]], first: int) -> list[list[str]]:
    return [row for row in rows if any(cell != MISSING for cell in row[first:])]
