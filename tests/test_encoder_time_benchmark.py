"""benchmarks/encoder_time.py in small: a row for each encoder, and GPTQ is checked first."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_row_for_each_encoder():
    script = str(ROOT / "benchmarks" / "encoder_time.py")
    command = [sys.executable, script, "--device", "cpu", "--scale", "64", "--check", "--commit", "test"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[1].endswith("of the codes are the CPU's")
    rows = [re.match(r"\| (.+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) -> ([\d.]+) \|", line) for line in lines[4:]]
    assert [row and row[1] for row in rows] == ["T5-XXL", "Qwen2.5-VL 7B", "Gemma 3 12B", "Mistral 3 24B"]
    assert all(row and float(row[5]) < float(row[4]) for row in rows)
