"""The environment check from the command line, in the Python that would run ComfyUI: `python dev.py check`.

Standard library only until torch is known to be there.
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from command_line import missing_packages, typed, use_comfyui_python

ROOT = Path(__file__).resolve().parents[1]


def without_packages(missing: list[str]) -> str:
    """The report for a Python in which the check itself cannot run."""
    return f"SVDQuant environment check\n\nPROBLEM: {use_comfyui_python(missing, 'check')}"


def import_environment() -> ModuleType:
    """svdq_core.environment, whatever the pack's folder is called."""
    return importlib.import_module("svdquant_pack.svdq_core.environment")


def main(argv: list[str] | None = None) -> int:
    """Print the report; the exit code is 1 if there is a problem to repair."""
    parser = argparse.ArgumentParser(
        prog=typed(),
        description="Says which kernels will run on this machine, which file to download, how much memory it takes and "
        "what to repair. Loads no model and installs nothing.",
    )
    parser.parse_args(argv)
    missing = missing_packages()
    if missing:
        print(without_packages(missing))
        return 1
    environment = import_environment()
    text = environment.report()
    print(text)
    return 1 if environment.PROBLEM in text else 0


if __name__ == "__main__":
    sys.exit(main())
