"""The command itself: two processes share the work, and what they leave is a report."""

import json
import os
import subprocess
import sys

import pytest

from svdquant_pack import ROOT
from svdquant_pack.research.evaluate import evaluate_command as command
from svdquant_pack.research.evaluate.methods import ways


@pytest.mark.slow
def test_two_processes_measure_every_way_once(tmp_path):
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        str(ROOT / "research/evaluate/start.py"),
    ]
    options = ["--captions", "4", "--calibration", "2", "--steps", "2", "--ways", "nearest_w4a4", "nf4", "arithmetic"]
    folders = ["--output", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--device", "cpu"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run([*run, *options, *folders], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(found) == {"unquantized", "reseed", "nearest_w4a4", "nf4_w4a16", "arithmetic"}
    assert sum("latent error" in line for line in done.stdout.splitlines()) == 3

    def mean(name, measure="error"):
        return sum(found[name]["steps"]["2"][measure]) / 5

    assert 0.001 < mean("arithmetic") < 0.2 * min(mean("nearest_w4a4"), mean("reseed"))
    assert mean("nf4_w4a16") < mean("nearest_w4a4")
    assert len(found["nearest_w4a4"]["lora"]["kept"]) == 5
    assert 0.5 < sum(found["nf4_w4a16"]["lora"]["kept"]) / 5 < 1.1
    # the reader sees the LoRA's style with it and not without
    assert sum(found["unquantized"]["lora"]["style"]) >= 4 and mean("unquantized", "style") == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"evaluation.md", "results.json", "quality_bits.png", "quality_rank.png"}
    assert "naive (round to nearest)" in (tmp_path / "out" / "evaluation.md").read_text()


def test_names_are_listed(capsys):
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [way.name for way in ways()]
    assert len(lines) == len({way.name for way in ways()}) > 70
