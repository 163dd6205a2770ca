"""The environment check from the command line, in the Python that would run ComfyUI: `python dev.py check`.

Standard library only until torch is known to be there.
"""

import argparse
import importlib
import sys
from importlib.util import find_spec
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


def write_speeds(device, path: Path) -> int:
    """Write the speed report; the exit code is 1 if it cannot be written."""
    if find_spec("comfy_kitchen") is not None:
        importlib.import_module("comfy_kitchen")  # as ComfyUI does, so that its operation takes part
    try:
        print(importlib.import_module("svdquant_pack.svdq_core.speed_report").write_report(device, path))
    except OSError as error:
        print(f"{path}: cannot be written ({error.strerror or error}). Name another file.")
        return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    """Print the report; the exit code is 1 if there is a problem to repair."""
    parser = argparse.ArgumentParser(
        prog=typed(),
        description="Says which kernels will run on this machine, which file to download, how much memory it takes and "
        "what to repair. Loads no model and installs nothing.",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write a small JSON file with the GPU, versions and the time that each way to compute takes, to attach "
        "to a report; it holds no path and no name of yours, and takes up to a minute to make",
    )
    options = parser.parse_args(argv)
    missing = missing_packages()
    if missing:
        print(without_packages(missing))
        return 1
    environment = import_environment()
    text = environment.report()
    print(text)
    failed = write_speeds(environment.best_device(), options.report) if options.report else 0
    return 1 if environment.PROBLEM in text or failed else 0


if __name__ == "__main__":
    sys.exit(main())
