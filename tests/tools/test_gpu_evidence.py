"""From a speed report to the table of GPUs: the row, its evidence, and where the table would choose otherwise."""

import json

import gpu_evidence
import pytest

from svdquant_pack.kernels.gpus import GENERATIONS

MACHINE = {"gpu": "NVIDIA GeForce RTX 4090", "chip": "sm_89", "driver": "580.65", "torch": "2.9", "triton": "3.5"}


def report(path, row="sm_89", int4=None, **more):
    seconds = int4 or {"w4a4": 0.06, "w4a8": 0.07, "w4a16": 0.15}
    measured = {"int4": {"seconds": seconds, "by_table": "w4a4"}, "nvfp4": {"seconds": {"w4a8": 0.07}}}
    whole = {"kind": "svdquant speed report", "format": 1, "machine": MACHINE, "row": row, "measured": measured}
    path.write_text(json.dumps(whole | more))
    return str(path)


@pytest.fixture(autouse=True)
def newest_triton(monkeypatch):
    for module in ("four_bit", "layer_paths"):
        monkeypatch.setattr(f"svdquant_pack.kernels.paths.{module}.why_no_language", lambda _kernel: None)


def test_a_report_gives_the_row_its_evidence(tmp_path, capsys):
    assert gpu_evidence.main([report(tmp_path / "a.json")]) == 0
    line = capsys.readouterr().out.strip()
    assert line == (
        'sm_89: evidence="timed on an NVIDIA GeForce RTX 4090 (driver 580.65, torch 2.9, triton 3.5): '
        'int4 w4a4 60.0 ms, w4a8 70.0 ms, w4a16 150.0 ms; nvfp4 w4a8 70.0 ms"'
    )
    assert line.partition('"')[2].startswith("timed on")  # what test_gpus.py wants, and what stops measuring


def test_a_table_that_chooses_otherwise_is_told(tmp_path, capsys):
    slower = {"w4a4": 0.09, "w4a8": 0.07}
    assert gpu_evidence.main([report(tmp_path / "a.json", int4=slower)]) == 1
    assert "int4: the table chooses w4a4, which takes 90.0 ms, and w4a8 70.0." in capsys.readouterr().out
    assert gpu_evidence.main([report(tmp_path / "b.json", int4={"w4a8": 0.07})]) == 1
    assert "chooses w4a4, which could not be timed" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "svdquant speed report", "format": 1, "measured": {}}'])
def test_what_is_no_report_is_refused(text, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert gpu_evidence.main([str(path)]) == 2
    assert "error: " in capsys.readouterr().out
    assert gpu_evidence.main([str(tmp_path / "none.json")]) == 2


def test_every_row_can_be_asked(tmp_path):
    for row in GENERATIONS:
        gpu_evidence.main([report(tmp_path / "a.json", row=row.name)])
