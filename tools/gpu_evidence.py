"""From speed reports of users to the table of GPUs: python tools/gpu_evidence.py REPORT...

A report is what `python dev.py check --report FILE` wrote. For each: the row of kernels/gpus.py that it is about, the
evidence to put there, and whether the table chooses what was measured to be the fastest; if not, a row that says
"timed" would be wrong, and int8_rate, int4 or fp4 have to be looked at first. The exit code is 1 then. It needs torch.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import svdquant_pack

TIE = 1.03  # as measured_choice has it


def read(path: Path) -> dict[str, Any]:
    """A speed report.

    Raises:
        ValueError: it is none, or one without times.
    """
    report = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(report, dict) or report.get("kind") != "svdquant speed report" or report.get("format") != 1:
        raise ValueError(f"{path.name} is no speed report of format 1.")
    if not any(measured.get("seconds") for measured in report["measured"].values()):
        raise ValueError(f"{path.name} holds no times.")
    return report


def evidence(report: dict[str, Any]) -> str:
    """What to put into a row as its evidence: which card, with what, and what each mode took."""
    machine = report["machine"]
    with_what = ", ".join(f"{name} {machine[name]}" for name in ("driver", "torch", "triton"))
    times = [
        f"{precision} "
        + ", ".join(f"{mode} {1e3 * s:.1f} ms" for mode, s in sorted(m["seconds"].items(), key=lambda i: i[1]))
        for precision, m in report["measured"].items()
        if m.get("seconds")
    ]
    return f"timed on an {machine['gpu']} ({with_what}): {'; '.join(times)}"


def disagreements(report: dict[str, Any]) -> list[str]:
    """Where the table chooses another mode than the fastest, a sentence each."""
    gpus = importlib.import_module(f"{svdquant_pack.__name__}.kernels.gpus")
    choose_on = importlib.import_module(f"{svdquant_pack.__name__}.kernels.choose_compute").choose_on
    row = next((row for row in gpus.GENERATIONS if row.name == report["row"]), gpus.OTHER)
    found = []
    for precision, measured in report["measured"].items():
        seconds = measured.get("seconds") or {}
        by_table, fastest = choose_on(precision, row)[0], min(seconds, key=seconds.__getitem__, default=None)
        if fastest is None:
            continue
        if by_table not in seconds:
            found.append(f"{precision}: the table chooses {by_table}, which could not be timed.")
        elif seconds[fastest] * TIE < seconds[by_table]:
            times = f"{1e3 * seconds[by_table]:.1f} ms, and {fastest} {1e3 * seconds[fastest]:.1f}"
            found.append(f"{precision}: the table chooses {by_table}, which takes {times}.")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="+")
    wrong = 0
    for path in parser.parse_args(argv).report:
        try:
            report = read(path)
        except (OSError, ValueError) as error:
            print(f"error: {error}")
            return 2
        print(f'{report["row"]}: evidence="{evidence(report)}"')
        for line in disagreements(report):
            print(f"    not before the table changes: {line}")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
