"""Runs the demo in a real ComfyUI: python demo/run.py --host COMFYUI --base FOLDER --output FOLDER.

`python dev.py demo` prepares a Python environment and a ComfyUI, and calls this with them.
"""

import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the stages; return 0 when every check passed."""
    # The host inherits it. With others on the same two cores, threads that spin while they wait made torch 13 times
    # slower: 60 layers of 280 x 256 by 1024 took 3450 and 2171 ms against 255 and 160 ms.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.path.insert(0, str(ROOT / "tools"))
    return importlib.import_module("svdquant_pack.demo.stages").main()


if __name__ == "__main__":
    sys.exit(main())
