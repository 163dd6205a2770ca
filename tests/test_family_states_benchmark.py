"""The benchmark of memory states with a tiny model on the CPU: every state is there, and none differs."""

import os
import subprocess
import sys

import pytest
from comfyui_source import find_host

from svdquant_pack import ROOT

pytestmark = pytest.mark.skipif(find_host() is None, reason="needs ComfyUI: set COMFYUI_PATH to its folder")


def test_a_tiny_model_goes_through_every_state(tmp_path):
    script = str(ROOT / "benchmarks" / "family_states.py")
    options = ["--mode", "legacy", "--cpu", "--tiny", "--models", "wan22_5b,zimage", "--folder", str(tmp_path)]
    variables = dict(os.environ, COMFYUI_PATH=str(find_host()))
    done = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, env=variables, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for state in ("dense, of the host", "LoRA on again", "saved by the host", "in turn with zimage"):
        assert any(f"| wan22_5b | {state}" in line for line in done.stdout.splitlines()), done.stdout
    assert done.stdout.endswith("0 failures\n") and "WRONG" not in done.stdout
