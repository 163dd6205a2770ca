"""`python dev.py check`: in a Python with torch and in one without."""

import json
import subprocess
import sys

import check_environment
import command_line
import torch

from svdquant_pack import ROOT


def test_a_python_with_torch_gets_the_report():
    command = [sys.executable, ROOT / "dev.py", "check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout.startswith("SVDQuant environment check") and "What will run" in result.stdout
    assert result.returncode == (1 if "PROBLEM" in result.stdout else 0), result.stderr


def test_a_python_without_torch_is_told_which_one_to_take(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "find_spec", lambda name: None if name == "torch" else object())
    assert check_environment.main([]) == 1
    printed = capsys.readouterr().out
    assert "has no torch." in printed and "python_embeded" in printed


def test_a_speed_report_is_written_beside_the_text(tmp_path, capsys, monkeypatch):
    environment = check_environment.import_environment()
    monkeypatch.setattr(environment, "report", lambda: "the report")
    monkeypatch.setattr(environment, "best_device", lambda: torch.device("cpu"))
    assert check_environment.main(["--report", str(tmp_path / "speeds.json")]) == 0
    assert "the report" in (printed := capsys.readouterr().out) and "no GPU here" in printed
    assert json.loads((tmp_path / "speeds.json").read_text())["kind"] == "svdquant speed report"
    assert check_environment.main(["--report", str(tmp_path / "no folder" / "speeds.json")]) == 1
    assert "cannot be written" in capsys.readouterr().out
