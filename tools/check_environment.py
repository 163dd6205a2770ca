"""The environment check from the command line, in the Python that would run ComfyUI: `python dev.py check`.

Standard library only until torch is known to be there.
"""

import importlib
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "safetensors", "numpy")


def without_packages(missing: list[str]) -> str:
    """The report for a Python in which the check itself cannot run."""
    return (
        f"SVDQuant environment check\n\n  PROBLEM {sys.executable} (Python {platform.python_version()}) has no "
        f"{' and no '.join(missing)}.\n\nWhat to do\n  Run it with the Python of your ComfyUI, for example\n"
        "    ComfyUI/venv/bin/python dev.py check                 (Linux, macOS)\n"
        "    ..\\..\\..\\python_embeded\\python.exe dev.py check     (Windows portable, from the pack's folder)"
    )


def import_environment() -> ModuleType:
    """svdq_core.environment, whatever the pack's folder is called."""
    return importlib.import_module("svdquant_pack.svdq_core.environment")


def main() -> int:
    """Print the report; the exit code is 1 if there is a problem to repair."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(without_packages(missing))
        return 1
    environment = import_environment()
    text = environment.report()
    print(text)
    return 1 if environment.PROBLEM in text else 0


if __name__ == "__main__":
    sys.exit(main())
