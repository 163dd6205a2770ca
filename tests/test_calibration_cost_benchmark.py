"""benchmarks/calibration_cost.py in small: a row for each budget, with what it says it measured."""

import os
import subprocess
import sys

from svdquant_pack import ROOT

SMALL = "--device cpu --hidden 256 --depth 1 --singles 1 --pixels 128 --steps 5 --tokens 64 --hessian-mib 0 1 64"


def test_a_row_for_each_budget():
    command = [sys.executable, str(ROOT / "benchmarks" / "calibration_cost.py"), *SMALL.split()]
    variables = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[3:]]
    assert [row[0] for row in rows] == ["0", "1", "64"]
    assert [row[1] for row in rows] == ["0 of 13", "4 of 13", "10 of 13"]  # 256 * 256 * 4 bytes each, then all
    assert all(float(cell) > 0 for row in rows for cell in row[2:4])
