"""Tables, orderings and plots of made-up figures: complete, partial, and contradicting the paper."""

import pytest
import torch

from svdquant_pack.research.evaluate import evaluation_report as report
from svdquant_pack.research.evaluate import tables
from svdquant_pack.research.evaluate.findings import Findings
from svdquant_pack.research.evaluate.methods import ways
from svdquant_pack.research.evaluate.orderings import ORDERINGS, Ordering, verdict
from svdquant_pack.research.evaluate.record import REFERENCE, RESEED, to_lists

USUAL, HARD = 20, 5
NAMES = {way.name for way in ways()}


def figures(error, seed=0):
    g = torch.Generator().manual_seed(seed)
    errors = error * (1 + 0.1 * torch.rand(USUAL + HARD, generator=g))
    return to_lists(
        {
            "error_by_step": torch.linspace(0.1, 1, 20)[:, None] * errors,
            "error": errors,
            "psnr": 40 - 100 * errors,
            "ssim": 1 - errors,
            "iou": 0.95 - errors / 5,
            "read": torch.ones_like(errors),
        }
    )


def entry(error, seed=0):
    return {"steps": {"20": figures(error, seed), "4": figures(2 * error, seed)}}


def findings(**errors):
    found = {name: entry(error) for name, error in errors.items()}
    found[REFERENCE] = {
        "machine": "a machine",
        "captions": [],
        "calibration": 7,
        "is_hard": [False] * USUAL + [True] * HARD,
        "steps": {s: {"iou": [0.95] * (USUAL + HARD), "read": [1.0] * (USUAL + HARD)} for s in ("20", "4")},
    }
    found[RESEED] = entry(0.5)
    return Findings(found)


def test_orderings_name_ways_that_exist():
    for ordering in ORDERINGS:
        assert {ordering.nearer, ordering.farther} <= NAMES
    names = [*tables.HEADLINE, *tables.OUTLIERS, *tables.OTHER_FORMATS]
    names += [name for series in tables.rank_series().values() for name in series]
    assert set(names) <= NAMES


@pytest.mark.parametrize(
    ("nearer", "farther", "expected"), [(0.1, 0.2, "holds"), (0.2, 0.1, "reversed"), (0.1, 0.1, "no clear difference")]
)
def test_verdicts(nearer, farther, expected):
    made = findings(paper_w4a4=nearer, nearest_w4a4=farther)
    ordering = Ordering("a source", "paper_w4a4", "nearest_w4a4", reason="a reason")
    assert verdict(made, ordering)[0] == expected


def test_an_ordering_that_fails_is_named_with_its_reason(monkeypatch):
    made = findings(paper_w4a4=0.2, nearest_w4a4=0.1)
    monkeypatch.setattr(tables, "ORDERINGS", (Ordering("it", "paper_w4a4", "nearest_w4a4", reason="because"),))
    (line,) = tables.orderings(made).splitlines()[2:]
    assert "| reversed | because |" in line and "-10." in line


def test_figures_are_those_of_the_usual_captions():
    made = findings(paper_w4a4=0.1)
    made.found["paper_w4a4"]["steps"]["20"]["error"][USUAL:] = [9.0] * HARD
    cell, hard = (made.cell("paper_w4a4", 20, "error", of) for of in ("usual", "hard"))
    assert cell.startswith("10.") and hard.startswith("900.0 ± 0.0")


def test_a_run_that_was_stopped_still_gets_a_report():
    text = report.report(findings(paper_w4a4=0.1))
    assert "SVDQuant, as in the paper" in text and "unquantized, other seeds" in text
    assert "## Bits" in text  # its plot stands there
    assert "## The pack's kernels" not in text and "Orderings" not in text
    assert "its weights were not there" not in text


def test_a_full_report_has_every_table():
    made = findings(**{name: 0.05 + 0.001 * i for i, name in enumerate(sorted(NAMES))})
    for name in NAMES:
        made.found[name]["lora"] = figures(0.1) | {"kept": [0.9] * 25, "effect_error": [0.2] * 25, "style": [1.0] * 25}
    text = report.report(made)
    for heading in ("Bits", "Below four", "Ranks", "Calibration", "The LoRA", "The pack's kernels", "Orderings"):
        assert f"## {heading}" in text
    assert text.count("| paper, table 1") == 5
    assert "| INT W4A8 | ours, best, calibrated |" in text


def test_plots_show_every_series():
    made = findings(**{f"{m}_w{b}a{b}": 0.4 / b for m in tables.LOW_BITS for b in (8, 4, 3)})
    chart = report.bits_plot(made)
    assert [len(series.points) for series in chart.series] == [3] * 4
    image = chart.draw()
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert {(0x25, 0x57, 0xD6), (0x8A, 0x8F, 0x99)} <= colours
    assert chart._y(0.1) < chart._y(0.01)
    nothing = report.rank_plot(findings(nearest_w4a4=0.1))
    assert not nothing.series and nothing.draw()
