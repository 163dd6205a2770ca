"""Output error of every quantization method on synthetic layers: `python benchmarks/quantize_layers.py`.

Prints markdown: relative output error on 2048 tokens that no method saw, mean and standard deviation over seeds. All
methods get the same calibration tokens, except "fast, no data".
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import pack  # noqa: F401
from synthetic_layers import SHAPES, SyntheticLayer, draw_layer

from svdquant_pack.kernels.format import GELU_SHIFT
from svdquant_pack.svdq_core.quantize.baselines import held_out_error, with_bits
from svdquant_pack.svdq_core.quantize.grid import runtime_arithmetic
from svdquant_pack.svdq_core.quantize.problem import Problem
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics

LABELS = {
    "nearest": "round to nearest",
    "smoothquant": "SmoothQuant",
    "hadamard": "block Hadamard, nearest",
    "nf4": "NF4 W4A16",
    "lorc": "LoRC (branch on the rounding error)",
    "svd": "SVD without smoothing",
    "paper": "SVDQuant as in the paper",
    "deepcompressor": "DeepCompressor, simulated",
    "deepcompressor_gptq": "DeepCompressor with GPTQ, simulated",
    "fast, no data": "ours: fast, no data",
    "fast": "ours: fast",
    "best": "ours: best",
}
COMPARED = ("nearest", "paper", "deepcompressor", "deepcompressor_gptq", "fast, no data", "fast", "best")
BITS = (8, 7, 6, 5, 4, 3)
RANKS = (0, 16, 32, 64, 128)

Errors = dict[str, dict[str, list[float]]]  # row -> layer -> one error for each seed


def pose(layer: SyntheticLayer, precision: str = "int4", activations: str = "w4a4", rank: int = 32) -> Problem:
    """The quantization problem of a synthetic layer, with all its calibration tokens."""
    unsigned = layer.after_gelu and precision == "int4"
    return Problem(
        weight=layer.weight,
        statistics=InputStatistics.from_tokens(layer.calibration),
        arithmetic=runtime_arithmetic(precision, activations, unsigned),
        shift=GELU_SHIFT if unsigned else 0.0,
        rank=rank,
        name=layer.name,
    )


def without_data(problem: Problem, layer: SyntheticLayer) -> Problem:
    """The problem when only the weight is known."""
    columns = problem.weight.shape[1]
    gelu = ((0, columns),) if layer.after_gelu else ()
    drawn = InputStatistics.synthetic(columns, gelu, problem.score_tokens, torch.Generator().manual_seed(0))
    return replace(problem, statistics=drawn.to(problem.weight.device))


def solve(method: str, problem: Problem, layer: SyntheticLayer) -> float:
    if method == "fast, no data":
        method, problem = "fast", without_data(problem, layer)
    return held_out_error(method, problem, layer.held_out)


class Run:
    """Layers of some seeds, and a table for each question asked of them."""

    def __init__(self, layers: list[str], seeds: int, device: str):
        self.layers, self.seeds, self.device = layers, seeds, device

    def measure(self, rows: dict[str, Callable[[SyntheticLayer], float]]) -> Errors:
        """Each row's error on each layer and seed."""
        errors: Errors = defaultdict(lambda: defaultdict(list))
        for name in self.layers:
            for seed in range(self.seeds):
                layer = draw_layer(name, seed, self.device)
                for row, error in rows.items():
                    errors[row][name].append(error(layer))
        return errors

    def print_table(self, title: str, rows: dict[str, Callable[[SyntheticLayer], float]]) -> Errors:
        started = time.perf_counter()
        errors = self.measure(rows)
        print(f"\n### {title}\n\n| | {' | '.join(self.layers)} |\n|---|{'---|' * len(self.layers)}")
        for row, found in errors.items():
            cells = (f"{statistics.mean(e):.4f} ± {statistics.pstdev(e):.4f}" for e in found.values())
            print(f"| {row} | {' | '.join(cells)} |")
        print(f"\n{self.seeds} seeds, {time.perf_counter() - started:.0f} s on {self.device}", flush=True)
        return errors


def compare(errors: Errors, row: str, with_row: str) -> str:
    """How much lower the errors of one row are than another's: each layer, then the mean of all."""
    gains = {n: [1 - a / b for a, b in zip(errors[row][n], errors[with_row][n], strict=True)] for n in errors[row]}
    parts = [f"{n} {100 * statistics.mean(g):.1f} % ± {100 * statistics.pstdev(g):.1f}" for n, g in gains.items()]
    total = 100 * statistics.mean(g for gain in gains.values() for g in gain)
    return f"- {row}, below {with_row}: {', '.join(parts)}; mean {total:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--layers", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--tables", nargs="+", choices=["methods", "bits", "ranks"], default=["methods", "bits", "ranks"]
    )
    arguments = parser.parse_args()
    run = Run(arguments.layers, arguments.seeds, arguments.device)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if run.device == 'cuda' else 'CPU'}")

    if "methods" in arguments.tables:
        rows = {LABELS[m]: lambda layer, m=m: solve(m, pose(layer), layer) for m in LABELS}
        w4a4 = run.print_table("INT4, W4A4, rank 32", rows)
        rows = {LABELS[m]: lambda layer, m=m: solve(m, pose(layer, activations="w4a8"), layer) for m in COMPARED}
        w4a8 = run.print_table("INT4, W4A8, rank 32", rows)
        rows = {LABELS[m]: lambda layer, m=m: solve(m, pose(layer, "nvfp4"), layer) for m in COMPARED}
        nvfp4 = run.print_table("NVFP4, W4A4, rank 32", rows)
        dc, paper, fast, best = (LABELS[m] for m in ("deepcompressor_gptq", "paper", "fast", "best"))
        print("\n### Lower errors\n")
        print("INT4 W4A4\n" + compare(w4a4, best, dc) + "\n" + compare(w4a4, fast, paper))
        print(compare(w4a4, LABELS["fast, no data"], paper))
        print("\nNVFP4 W4A4\n" + compare(nvfp4, best, dc) + "\n" + compare(nvfp4, fast, paper))
        crossed = {f"{best}, W4A8": w4a8[best], f"{best}, W4A4": w4a4[best], f"{dc}, W4A4": w4a4[dc]}
        print("\nINT4 W4A8 and W4A4")
        print("\n".join(compare(crossed, f"{best}, W4A8", f"{name}, W4A4") for name in (best, dc)))
    if "ranks" in arguments.tables:
        rows = {f"rank {r}": lambda layer, r=r: solve("best", pose(layer, rank=r), layer) for r in RANKS}
        run.print_table("Ours: best, INT4, W4A4, by rank", rows)
        rows = {f"rank {r}": lambda layer, r=r: solve("best", pose(layer, "int4", "w4a8", r), layer) for r in RANKS}
        run.print_table("Ours: best, INT4, W4A8, by rank", rows)
    if "bits" in arguments.tables:
        rows = {
            f"{LABELS[m]}, {b} bits": lambda layer, m=m, b=b: solve(m, with_bits(pose(layer), b, b), layer)
            for m in ("nearest", "smoothquant", "paper", "best")
            for b in BITS
        }
        run.print_table("Weights and activations of equal width", rows)


if __name__ == "__main__":
    main()
