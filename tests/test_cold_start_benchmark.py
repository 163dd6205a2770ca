"""benchmarks/cold_start.py in small: a row for each change, and nothing that is left behind."""

import os
import re
import subprocess
import sys

import pytest
from comfyui_source import find_host

from svdquant_pack import ROOT

pytestmark = pytest.mark.skipif(find_host() is None, reason="needs ComfyUI: set COMFYUI_PATH to its folder")


def test_a_row_for_each_change(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "cold_start.py"), "--device", "cpu", "--tiny"]
    command += ["--pixels", "64", "--text", "16"]
    variables = dict(os.environ, COMFYUI_PATH=str(find_host()), PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    variables["TMPDIR"] = str(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (\d+ x \d+, batch \d, LoRA \w+) \| \d+\.\d+ \| -?\d+\.\d+ \|$", done.stdout, re.MULTILINE)
    assert rows[:3] == ["64 x 64, batch 1, LoRA none", "32 x 32, batch 1, LoRA none", "48 x 48, batch 1, LoRA none"]
    assert len(rows) == 12 and rows[-2:] == ["64 x 64, batch 1, LoRA 128", "64 x 64, batch 1, LoRA none"]
    assert re.search(r"^The first step took \d+\.\d s\.$", done.stdout, re.MULTILINE)
    assert not list(tmp_path.glob("svdquant-*")), "left behind"
