"""Runs the evaluation without a host: python demo/evaluate/run.py, or under torchrun for several processes.

`python dev.py evaluate` prepares a Python environment and calls this.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the command; return its exit code."""
    pack = ModuleType("svdquant_pack")  # the folder's own name has a dash and names no package
    pack.__path__ = [str(ROOT)]
    sys.modules["svdquant_pack"] = pack
    return importlib.import_module("svdquant_pack.demo.evaluate.command").main()


if __name__ == "__main__":
    sys.exit(main())
