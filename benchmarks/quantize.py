"""Quality and time of quantization: `python dev.py bench --quantize`, or this file.

    python benchmarks/quantize.py                  both, at full size; needs a GPU for the times, 40 GB for files
    python benchmarks/quantize.py --quality        errors of all methods on synthetic layers, and what is claimed
    python benchmarks/quantize.py --time           the whole command at the size of FLUX.1-dev and PixArt-Sigma

Prints Markdown. Nothing that does not fit into --seconds is begun.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / room) for room in ("tests", "tools", "benchmarks")]

import torch  # noqa: E402
from command_line import typed  # noqa: E402
from machine import header  # noqa: E402
from quantize_layers import TABLES, LayerRun, tables, verdicts  # noqa: E402
from quantize_time import GPU_BYTES, SIZES, disk_rate, estimate, run_apart, stage_table, write_model  # noqa: E402
from synthetic_layers import SHAPES  # noqa: E402
from synthetic_model import Size, shapes_of  # noqa: E402

DAY = 86400.0
FEW_BLOCKS = {"flux": (2, 4), "pixart": (4,)}
LIMITS = {("FLUX.1-dev", "fast"): 60, ("FLUX.1-dev", "best"): 600, ("PixArt-Sigma", "fast"): 30}
SHARED_MEMORY = Path("/dev/shm")


class Report:
    """Lines that are printed as they come, and kept in a file."""

    def __init__(self, path: Path | None):
        self.path, self.lines = path, []

    def __call__(self, text: str = "") -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        self.lines.append(text)
        if self.path is not None:
            self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def quality(options: argparse.Namespace, say: Callable[[str], None], seconds: float) -> None:
    """The tables of errors, and the claims."""
    run = LayerRun(options.layers, options.seeds, options.device, seconds)
    asked = tables(options.tables)
    took = run.measure(asked)
    for title in asked:
        say("\n" + run.table(title))
    if "methods" in options.tables:
        say("\n### Claims: how much lower an error is\n")
        for line in verdicts(run.errors):
            say(line)
    say(f"\nquality: {took:.0f} s on {options.device}")


def times(options: argparse.Namespace, say: Callable[[str], None], deadline: float) -> None:
    """The tables of times: each model with fast, then with best."""
    folder = options.folder or choose_folder(options.sizes)
    say(
        f"\nFiles in {'memory' if folder == SHARED_MEMORY else folder}; GPU memory limited to {GPU_BYTES / 1e9:.0f} GB."
    )
    say(f"A disk of this machine writes {disk_rate(Path(tempfile.gettempdir())) / 1e9:.2f} GB/s.")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for name, size in options.sizes.items():
            source = Path(place) / "source.safetensors"
            started = time.perf_counter()
            nbytes = write_model(source, size, torch.device(options.device))
            say(f"\n{name}: {nbytes / 2**30:.2f} GiB of random weights, drawn in {time.perf_counter() - started:.1f} s")
            runs: dict[str, dict] = {}
            for method in options.methods:
                found = time_run(
                    name, size, source, method=method, options=options, say=say, left=deadline - time.perf_counter()
                )
                runs |= found
            if runs:
                say(f"\n### {name} size, {options.precision}, rank 32, tuned for {options.activations}\n")
                say(stage_table(runs))
                for label, found in runs.items():
                    if found["finished"]:
                        written = found["written"] / 2**30
                        say(f"\n{label}: {written:.2f} GiB written, {found['process']:.1f} s with start-up")
            source.unlink()


def time_run(
    name: str, size: Size, source: Path, *, method: str, options: argparse.Namespace, say: Callable, left: float
) -> dict[str, dict]:
    """Columns of the table: one run over the whole model, or over some blocks where no more fits into what is left."""
    limit = LIMITS.get((name, method))
    if left < 20:
        say(f"{name}, {method}: not run, no time left")
        return {}
    if method == "best":
        few = replace(size, blocks=tuple(min(a, b) for a, b in zip(FEW_BLOCKS[size.family], size.blocks, strict=True)))
        part = source.with_name("part.safetensors")
        write_model(part, few, torch.device(options.device))
        found = run_apart(few, part, method, options, left - 10)
        part.unlink()
        if failed(name, method, found, say):
            return {}
        expected = estimate(found, few, size)
        blocks = " + ".join(map(str, few.blocks))
        say(f"{name}, {method}: {found['seconds']:.1f} s for {blocks} blocks, extrapolated {expected:.0f} s for all")
        if expected > left - found["process"] - 20:
            say(verdict(f"{name}, {method}, extrapolated", expected, limit, found))
            return {f"{method}, {blocks} blocks": found}
        left -= found["process"]
    found = run_apart(size, source, method, options, left - 10)
    if failed(name, method, found, say):
        return {}
    if not found["finished"]:
        say(f"{name}, {method}: not finished after {found['seconds']:.0f} s")
        return {f"{method}, not finished": found}
    say(verdict(f"{name}, {method}", found["seconds"], limit, found))
    return {method: found}


def failed(name: str, method: str, found: dict, say: Callable[[str], None]) -> bool:
    if "error" in found:
        say(f"{name}, {method}: failed: {found['error']}\n{found['log']}")
    return "error" in found


def verdict(what: str, seconds: float, limit: float | None, found: dict) -> str:
    memory = f"{found['gpu'] / 1e9:.1f} GB of GPU memory, {found['main'] / 1e9:.1f} GB of main memory"
    if limit is None:
        return f"{what}: {seconds:.1f} s, {memory}"
    return f"{what}: {seconds:.1f} s of {limit} allowed ({'kept' if seconds <= limit else 'NOT kept'}), {memory}"


def choose_folder(sizes: dict[str, Size]) -> Path:
    """Where the files go: into memory if it holds them, so that no disk is measured."""
    need = max(sum(2 * _count(shape) for shape in shapes_of(size).values()) for size in sizes.values()) * 1.7
    if SHARED_MEMORY.is_dir():
        if shutil.disk_usage(SHARED_MEMORY).free < need:  # as root the limit can be raised; elsewhere this does nothing
            remount = ["mount", "-o", f"remount,size={int(need / 2**30) + 4}G", str(SHARED_MEMORY)]
            subprocess.run(remount, capture_output=True, check=False)
        if shutil.disk_usage(SHARED_MEMORY).free > need:
            return SHARED_MEMORY
    return Path(tempfile.gettempdir())


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=typed(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--seconds", type=float, default=DAY, help="for all of it")
    parser.add_argument("--quality-seconds", type=float, default=DAY, help="for the tables of errors alone")
    parser.add_argument("--output", type=Path, help="a file to keep what is printed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", help="what to print for the commit where git is not")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--layers", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["methods"])
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=["fast", "best"], default=["fast", "best"])
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--activations", default="w4a8")
    parser.add_argument("--folder", type=Path, help="for the files (default: memory if it holds them)")
    parser.add_argument("--tiny", action="store_true", help="models of width 256 and a few blocks, to try this program")
    options = parser.parse_args(arguments)
    options.sizes = {name: SIZES[name] for name in options.models}
    if options.tiny:
        options.sizes = {n: replace(s, width=256, blocks=tuple(2 for _ in s.blocks)) for n, s in options.sizes.items()}
    return options


def main(arguments: list[str] | None = None) -> int:
    """Print what was asked for."""
    options = parse(arguments)
    if options.time and options.device == "cpu" and not options.tiny:
        sys.stderr.write("The times need a GPU that torch can use.\n")
        return 2
    started = time.perf_counter()
    say = Report(options.output)
    say(header(options.commit))
    both = options.quality == options.time
    if options.time or (both and (options.device != "cpu" or options.tiny)):
        times(options, say, started + options.seconds)
    if options.quality or both:
        left = options.seconds - (time.perf_counter() - started)
        quality(options, say, min(left, options.quality_seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
