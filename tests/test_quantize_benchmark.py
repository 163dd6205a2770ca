"""bench --quantize in small: every table is there, claims follow from rows, a part is extrapolated to the whole."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from svdquant_pack import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import torch
from quantize_families import HEADER, first_blocks, kinds_of, row_of
from quantize_layers import LABELS, NVFP4, SAME_WEIGHTS, W4A4, W4A8, tables, verdicts
from quantize_time import estimate, stage_table
from synthetic_layers import DEAD_SHARE, draw_layer
from synthetic_model import SIZES, Size, shapes_of


def run(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "layers.py"), "--quantize", "--device", "cpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_times_of_a_tiny_model():
    text = run("--time", "--tiny", "--models", "FLUX.1-dev")
    assert re.search(r"best: [\d.]+ s for 2 \+ 2 blocks, extrapolated", text)
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if line.startswith("| ")}
    assert {"smoothing search", "GPTQ", "inputs from running the model on noise", "**in all**"} <= rows.keys()
    assert float(rows["GPTQ"][0]) == 0 < float(rows["GPTQ"][1])
    parts = [
        float(cells[0]) for name, cells in rows.items() if re.fullmatch(r" [\d.]+ ", cells[0]) and "peak" not in name
    ]
    assert abs(sum(parts) - float(rows["**in all**"][0].strip(" *"))) < 1


def test_real_sizes_are_the_real_models():
    counts = {name: sum(_product(s) for s in shapes_of(size).values()) for name, size in SIZES.items()}
    assert counts["FLUX.1-dev"] == 11_901_408_320  # BFL's own file
    assert 0.60e9 < counts["PixArt-Sigma"] < 0.62e9


def _product(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def test_a_part_is_extrapolated_block_by_block():
    part, whole = Size("flux", 256, (1, 2)), Size("flux", 256, (19, 38))
    found = {"seconds": 10.0, "layers": {"double_blocks": [1.0, 2.0], "single_blocks": [0.5, 0.5]}}
    assert estimate(found, part, whole) == 19 * 3 + 19 * 1 + 19 * 6


def test_the_stage_table_adds_up():
    found = {"seconds": 5.0, "stages": {"GPTQ": 3.0}, "gpu": 2e9, "main": 1e9}
    lines = stage_table({"best": found}).splitlines()
    assert "| GPTQ | 3.0 |" in lines and "| everything else | 2.0 |" in lines and "| **in all** | **5.0** |" in lines
    assert not any("smoothing" in line for line in lines)  # took no time


def test_claims_are_judged_on_each_layer():
    def rows(value: float) -> dict:
        return {label: {"out": [value], "fc2": [value]} for label in (*LABELS.values(), SAME_WEIGHTS)}

    errors = {W4A4: rows(1.0), W4A8: rows(1.0), NVFP4: rows(1.0)}
    errors[W4A4][LABELS["best"]] = {"out": [0.90], "fc2": [0.97]}
    errors[NVFP4][LABELS["best"]] = {"out": [0.90], "fc2": [0.94]}
    errors[W4A8][LABELS["best"]] = {"out": [0.70], "fc2": [0.70]}
    lines = list(verdicts(errors))
    assert "| best below DeepCompressor with GPTQ, W4A4 | 5 % | 10.0 % | 3.0 % | 6.5 % | kept in the mean |" in lines
    assert "| best below DeepCompressor with GPTQ, NVFP4 | 5 % | 10.0 % | 6.0 % | 8.0 % | kept |" in lines
    assert "| best at W4A8 below the same weights at W4A4 | 40 % | 30.0 % | 30.0 % | 30.0 % | not kept |" in lines


def test_layers_have_the_difficulty_that_they_are_named_after():
    usual, decay, shift, dead = (draw_layer(name, 0) for name in ("out", "decay", "shift", "dead"))
    shares = []
    for layer in (usual, decay):
        values = torch.linalg.svdvals(layer.weight)
        shares.append(float(values[:32].square().sum() / values.square().sum()))
    assert shares[0] < 0.6 and shares[1] > 0.8
    silent = (dead.held_out == 0).all(dim=0)
    assert torch.equal(silent.nonzero()[:, 0], torch.arange(0, 1024, DEAD_SHARE))
    assert float(dead.weight[:, 0].abs().mean()) > 0  # the weights do not know
    centres = [layer.held_out.unflatten(0, (-1, 8)).mean(dim=0) / layer.held_out.std(dim=0) for layer in (usual, shift)]
    assert float(centres[0].std(dim=0).mean()) < 0.15 < 0.5 < float(centres[1].std(dim=0).mean())


def test_scales_of_nvfp4():
    layer = draw_layer("out", 0)
    (rows,) = tables(["scales"]).values()
    six, four_over_six, ours, activations, either = (row(layer) for row in rows.values())
    assert ours < 0.97 * four_over_six < four_over_six < six
    assert either < activations


def test_families_are_sampled_by_kind_of_block_and_limits_are_looked_at():
    plan = SimpleNamespace(
        blocks=dict.fromkeys([*(f"double.{i}" for i in range(3)), *(f"single.{i}" for i in range(4))])
    )
    kinds = kinds_of(plan)
    assert {kind: len(blocks) for kind, blocks in kinds.items()} == {"double": 3, "single": 4}
    assert first_blocks(kinds, {"double": 1, "single": 2}) == {"double.0", "single.0", "single.1"}
    found = {"model": "zimage", "method": "fast", "parameters": 6e9, "share": 0.9, "opening": 1.0, "compiling": 2.0}
    found |= {"measured": 20.0, "done": [3, 7], "seconds": 29.0, "gpu": 11e9, "main": 3e9, "file": 2**30}
    line, kept = row_of(found)
    assert kept and "| 20.0 (3 of 7) | 29 | 30 |" in line and line.count("|") == HEADER.splitlines()[0].count("|")
    for change in ({"seconds": 31.0}, {"gpu": 13e9}, {"main": 17e9}):
        line, kept = row_of(found | change)
        assert not kept and "**NOT kept**" in line
