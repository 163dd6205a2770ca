"""Runs the measurement of refining: python research/refine/refine_demo.py, or under torchrun for several processes."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the command; return its exit code."""
    sys.path.insert(0, str(ROOT / "tools"))  # where the pack has an importable name
    return importlib.import_module("svdquant_pack.research.refine.refine_command").main()


if __name__ == "__main__":
    sys.exit(main())
