"""Compile every kernel with every Triton that the pack supports, each in an environment of its own; no GPU needed.

    python dev.py compile                       all versions, for one GPU of each kind; the tests' version for all GPUs
    python dev.py compile 3.6.0 --gpus sm_89    one version, one GPU

Each Triton is fetched once, into .dev/triton/. What an older one cannot compile is left to the next step of the ladder
when layers run (kernels/ladder.py); those cases are known below, and anything else that fails makes the exit code 1.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from command_line import typed

ROOT = Path(__file__).resolve().parents[1]
TRITONS = ROOT / ".dev" / "triton"
COMPILER = ROOT / "tests" / "kernels" / "cross_compile.py"
# torch 2.7 pins 3.3, and each torch since the next one
VERSIONS = ("3.3.1", "3.4.0", "3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0")
TESTED = "3.7.1"  # by the tests, which leave kernels without products to the ends of each kind of GPU
GPUS = ("sm_80", "sm_90", "sm_120", "gfx942")
# (version, GPU or kernel) -> why it cannot be compiled there
KNOWN = {
    ("3.3.1", "gemm_nvfp4"): "its assembler does not know the block-scaled product",
    ("3.3.1", "gfx942"): "this Triton links with a ROCm that has to be installed",
    ("3.4.0", "gfx942"): "this Triton links with a ROCm that has to be installed",
    ("3.4.0", "gemm_nvfp4"): "its compiler fails on the block-scaled product",
    ("3.5.1", "gemm_nvfp4"): "its compiler fails on the block-scaled product",
    ("3.5.1", "gemm_w4a8_hopper"): "its Gluon has another warp_specialize",
}


def install(version: str) -> Path:
    """The folder of one Triton, fetched if it is not there.

    Raises:
        subprocess.CalledProcessError: pip cannot get it.
    """
    folder, part = TRITONS / version, TRITONS / f"{version}.part"
    if not folder.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", part, f"triton=={version}"]
        subprocess.run(pip, check=True)
        part.rename(folder)
    return folder


def compile_for(version: str, gpu: str) -> dict:
    """What cross_compile.py says, or {"error": ...}."""
    paths = os.pathsep.join(str(path) for path in (TRITONS / version, ROOT / "tests", ROOT / "tools"))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": paths, "TRITON_CACHE_DIR": str(TRITONS / f"{version}.cache")}
    done = subprocess.run([sys.executable, COMPILER, gpu], capture_output=True, text=True, env=environment, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip().splitlines()[-1:]}


def gpus_for(version: str) -> list[str]:
    """The GPUs that a version compiles for unless told otherwise."""
    from svdquant_pack.kernels.gpus import GENERATIONS

    every = [row.name for row in GENERATIONS if row.target is not None]
    return every if version == TESTED else list(GPUS)


def judge(version: str, gpu: str, report: dict) -> tuple[str, bool]:
    """A cell of the table, and whether it is as it should be."""
    known = [why for (v, what), why in KNOWN.items() if v == version and what == gpu]
    if "error" in report:
        return (known[0], True) if known else (f"broke off: {report['error']}", False)
    cell, right = f"{len(report['kernels'])} compile", True
    spills = {name: entry["spills"] for name, entry in report["kernels"].items() if entry["spills"]}
    if spills:
        cell += f"; spills {spills}"
    if report["missing"]:
        cell += f"; no language for {', '.join(report['missing'])}"
    if known and report["failed"]:
        return f"{cell}; {len(report['failed'])} do not: {known[0]}", True
    for name, error in report["failed"].items():
        why = KNOWN.get((version, name.split()[0]))
        right &= why is not None
        cell += f"; {name}: {why or error}"
    return cell, right


def main(argv: list[str]) -> int:
    """Print the table; 1 if something failed that should not."""
    parser = argparse.ArgumentParser(
        prog=typed(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--gpus", nargs="+", help="sm_80 ... sm_120, gfx942, gfx1100, gfx1201")
    options = parser.parse_args(argv)
    absent = [version for version in options.versions if not (TRITONS / version).is_dir()]
    if absent:
        sys.stderr.write(
            f"fetching Triton {', '.join(absent)} into {TRITONS} (about 0.2 GB each, 0.5 GB on the disk)\n"
        )
    for version in options.versions:
        install(version)
    cases = [(version, gpu) for version in options.versions for gpu in options.gpus or gpus_for(version)]
    wrong = 0
    sys.stdout.write("| Triton | GPU | |\n|---|---|---|\n")
    with ThreadPoolExecutor(2) as pool:
        for case, report in zip(cases, pool.map(lambda case: compile_for(*case), cases), strict=True):
            cell, right = judge(*case, report)
            wrong += not right
            sys.stdout.write(f"| {case[0]} | {case[1]} | {cell} |\n")
            sys.stdout.flush()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
