"""What recording a calibration adds to each step of FLUX.1, and the memory it takes.

usage: python benchmarks/calibration_cost.py [--device cuda] [--steps 12] [--tokens 512] [--hessian-mib 0 2048 7000]
                                      [--pixels 1024] [--hidden 3072] [--depth 19] [--singles 38]

Every input of the model's blocks is shown to the collector once a step, as Start Calibration does; the model itself
does not run. The inputs are noise in bfloat16. The first steps fill the reservoir; later ones are told apart from them.
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / room) for room in ("tests", "tools", "benchmarks")]

import torch  # noqa: E402
from machine import header  # noqa: E402

from svdquant_pack.svdq_core.models import FLUX  # noqa: E402
from svdquant_pack.svdq_core.quantize.calibrate import Collector  # noqa: E402
from svdquant_pack.svdq_core.quantize.hessian_choice import choose_hessians  # noqa: E402
from svdquant_pack.svdq_core.quantize.layout_plan import plan_layout  # noqa: E402

TEXT_TOKENS = 512
FILLING = 4  # steps in which most tokens of the reservoir are new


def sites(options: argparse.Namespace) -> dict[str, tuple[int, tuple[int, int]]]:
    """Host module name -> (tokens of its input, (out_features, in_features))."""
    image = (options.pixels // 16) ** 2
    found = {}
    for name, linear in FLUX.linears({"double_blocks": options.depth, "single_blocks": options.singles}):
        tokens = image + TEXT_TOKENS if name.startswith("single") else TEXT_TOKENS if ".txt_" in name else image
        found[name] = (
            1 if linear.modulation_chunks else tokens,
            (linear.shape[0] * options.hidden, linear.shape[1] * options.hidden),
        )
    return found


def measure(options: argparse.Namespace, hessian_mib: int) -> list[str]:
    """Cells of one row."""
    device = torch.device(options.device)
    layers = sites(options)
    hessians = choose_hessians(
        plan_layout(FLUX, {name: shape for name, (_, shape) in layers.items()}, 0), hessian_mib << 20
    )
    collector = Collector(tokens=options.tokens, hessians=hessians)
    inputs = {
        size: torch.randn(1, *size, device=device, dtype=torch.bfloat16)
        for size in {(tokens, shape[1]) for tokens, shape in layers.values()}
    }
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    times = []
    for _ in range(options.steps):
        started = time.perf_counter()
        for name, (tokens, shape) in layers.items():
            collector.add(name, inputs[tokens, shape[1]])
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
    later = times[FILLING:] or times
    return [
        f"{hessian_mib}",
        f"{len(hessians)} of {len(layers)}",
        f"{times[0]:.3f}",
        f"{statistics.median(later):.3f}",
        f"{collector.nbytes / 2**30:.2f}",
        f"{peak / 2**30:.2f}",
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}",
    ]


def main(argv: list[str]) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--hessian-mib", type=int, nargs="+", default=[0, 2048, 7000])
    for name, default in (("steps", 12), ("tokens", 512), ("pixels", 1024), ("hidden", 3072)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--depth", type=int, default=19)
    parser.add_argument("--singles", type=int, default=38)
    options = parser.parse_args(argv)
    print(header(None))
    titles = (
        "hessian_mib",
        "layers with one",
        "first step, s",
        "later steps, s",
        "file, GiB",
        "GPU, GiB",
        "process, GiB",
    )
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for hessian_mib in options.hessian_mib:
        print("| " + " | ".join(measure(options, hessian_mib)) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
