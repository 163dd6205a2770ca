"""bench --step in small: the host's own model class, all modes, no graph break."""

import os
import re
import subprocess
import sys

import pytest
from comfyui_source import find_host

from svdquant_pack import ROOT

pytestmark = pytest.mark.skipif(find_host() is None, reason="needs ComfyUI: set COMFYUI_PATH to its folder")
SMALL = "--device cpu --depth 2 --singles 2 --hidden 256 --pixels 128 --text 16 --repeats 1 --backend aot_eager"


def run(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "layers.py"), "--step", *SMALL.split(), *arguments]
    variables = dict(os.environ, COMFYUI_PATH=str(find_host()), PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_mode_runs_and_compiles_whole_blocks():
    text = run()
    for name in ("BF16", "ours w4a8, rank 32", "ours w4a4, rank 32", "ours w4a16, rank 32"):
        cells = next(line for line in text.splitlines() if line.startswith(f"| {name} |")).split("|")[2:-1]
        assert all(re.fullmatch(r" \d+\.\d+x? ", cell) for cell in cells[:5]), name
    notes = re.findall(r"(\w+): 2 graphs for 4 blocks in \d+ s, 0 graph breaks, (\S+) from eager", text)
    assert [mode for mode, _ in notes] == ["bf16", "w4a8", "w4a4", "w4a16"]
    assert all(float(error) < 0.05 for _, error in notes)


def test_nothing_is_begun_after_the_deadline():
    text = run("--seconds", "0.001", "--eager-only")
    assert text.count("left out, 0.001 s had passed") >= 3
