"""The table shows everything that was tried, losers included, with what other seeds would change."""

import torch

from svdquant_pack.research.gate.gate_table import HEAD, gate_report
from svdquant_pack.research.gate.recipes import BASE

SETTINGS = {"captions": 20, "hard": 10, "steps": 8, "replicates": 3, "calibration": 4, "machine": "a machine"}


def run(recipe, mean, replicate, form="w4a4"):
    g = torch.Generator().manual_seed(0)
    values = mean * (1 + 0.1 * torch.rand(30, generator=g)) * (1 + 0.01 * replicate)
    return {"recipe": recipe, "form": form, "replicate": replicate, "error": values.tolist(), "layer_error": mean / 2}


def rows(text):
    text = text.partition("## The paper's comparisons")[0]
    return [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "latent error" not in line][1:]


def test_rows_stand_by_error_and_losers_stay():
    runs = [run(n, m, r) for n, m in ((BASE, 0.1), ("nearest", 0.2), ("paper", 0.1001)) for r in range(3)]
    text = gate_report(SETTINGS, runs)
    found = rows(text)
    assert [row[0].split("`")[-2] for row in found] == [BASE, "paper", "nearest"]
    assert found[2][HEAD.index("change, %")].startswith("+100.0 ±")
    assert found[2][-1] == "worse |" and found[0][-1] == "- |"
    assert found[0][HEAD.index("median layer error, %")] == "5.0"
    assert "| `best` | SVDQuant as in the paper (`paper`) | -0.1" in text.partition("## What the presets beat")[2]
    compared = text.partition("## The paper's comparisons")[2].partition("## What")[0]
    assert [line.split(" | ")[2] for line in compared.splitlines() if line.startswith("| INT W4A4")] == [
        "simulated",
        "simulated",
        "ours",
    ]
    assert "20 captions" in text and "10 hard ones" in text and "INT W4A4" in text


def test_a_run_that_was_stopped_compares_what_both_have():
    runs = [run(BASE, 0.1, r) for r in range(3)] + [run("paper", 0.12, 1)]
    (_, row) = rows(gate_report(SETTINGS, runs))
    assert row[HEAD.index("change, %")] == "+20.0" and "no verdict" in row[-1]
    alone = rows(gate_report(SETTINGS, [run("paper", 0.12, 1, "nvfp4")]))
    assert alone[0][HEAD.index("against")] == "-"


def test_hard_captions_are_apart():
    entries = [run(BASE, 0.1, r) for r in range(3)]
    for entry in entries:
        entry["error"][20:] = [0.5] * 10
    (row,) = rows(gate_report(SETTINGS, entries))
    assert row[HEAD.index("hard set, %")] == "50.00 ± 0.00" and row[HEAD.index("latent error, %")].startswith("10.")
