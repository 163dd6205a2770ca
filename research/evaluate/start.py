"""Runs the evaluation without a host: python research/evaluate/start.py, or under torchrun for several processes.

`python dev.py evaluate` prepares a Python environment and calls this.
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the command; return its exit code."""
    sys.path.insert(0, str(ROOT / "tools"))  # where the pack has an importable name
    return importlib.import_module("svdquant_pack.research.evaluate.evaluate_command").main()


if __name__ == "__main__":
    sys.exit(main())
