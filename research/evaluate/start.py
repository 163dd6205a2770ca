"""Runs the evaluation without a host: python research/evaluate/start.py, or under torchrun for several processes.

With --gate it runs the gate, which compares recipes for quantizing.

`python dev.py evaluate` prepares a Python environment and calls this.
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GATE = "--gate"


def main() -> int:
    """Run the command; return its exit code."""
    sys.path.insert(0, str(ROOT / "tools"))  # where the pack has an importable name
    arguments = sys.argv[1:]
    command = "gate.gate_command" if GATE in arguments else "evaluate.evaluate_command"
    return importlib.import_module(f"svdquant_pack.research.{command}").main([a for a in arguments if a != GATE])


if __name__ == "__main__":
    sys.exit(main())
