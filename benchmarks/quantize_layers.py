"""Output error of every quantization method on synthetic layers, and whether ours keep what is claimed of them.

Relative output error on 2048 tokens that no method saw, mean and standard deviation over seeds. All methods get the
same calibration tokens, except "fast, channels known", which gets the mean and spread of each channel, and "fast,
nothing known".
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from synthetic_layers import SHAPES, SyntheticLayer, draw_layer

from svdquant_pack.kernels.format import E4M3_MAX, GELU_SHIFT
from svdquant_pack.research.baselines import METHODS, held_out_error, with_bits
from svdquant_pack.research.evaluate.other_programs import PROGRAMS, program_error
from svdquant_pack.svdq_core.quantize.grid import NVFP4 as NVFP4_GRID
from svdquant_pack.svdq_core.quantize.grid import runtime_arithmetic
from svdquant_pack.svdq_core.quantize.part_plan import PartPlan
from svdquant_pack.svdq_core.quantize.problem import Problem
from svdquant_pack.svdq_core.quantize.round import fit_scales, round_to_units, units_to_values
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics

NOTHING, CHANNELS = "fast, nothing known", "fast, channels known"
LABELS = {
    "nearest": "round to nearest",
    "smoothquant": "SmoothQuant",
    "hadamard": "block Hadamard, nearest",
    "quarot_gptq": "QuaRot with GPTQ, simulated",
    "atom": "Atom, simulated",
    "nf4": "NF4 W4A16",
    "lorc": "LoRC (branch on the rounding error)",
    "svd": "SVD without smoothing",
    "paper": "SVDQuant as in the paper",
    "deepcompressor": "DeepCompressor, simulated",
    "deepcompressor_gptq": "DeepCompressor with GPTQ, simulated",
    NOTHING: "ours: fast, nothing known of the input",
    CHANNELS: "ours: fast, channels known",
    "fast": "ours: fast, inputs recorded",
    "best": "ours: best",
}
COMPARED = (
    "nearest",
    "quarot_gptq",
    "paper",
    "deepcompressor",
    "deepcompressor_gptq",
    NOTHING,
    CHANNELS,
    "fast",
    "best",
)
W4A4, W4A8, NVFP4 = "INT4, W4A4, rank 32", "INT4, W4A8, rank 32", "NVFP4, W4A4, rank 32"
SAME_WEIGHTS = "ours: best, tuned for W4A8, run in W4A4"
SIX, FOUR = 6.0, 4.0  # what a group's largest value becomes in E2M1
VIDIT = "ViDiT-Q, simulated"
BITS = (8, 7, 6, 5, 4, 3)
RANKS = (0, 16, 32, 64, 128)

Row = Callable[[SyntheticLayer], float]
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


def solve(method: str, problem: Problem, layer: SyntheticLayer) -> float:
    """Held-out error of a key of LABELS."""
    if method == CHANNELS:
        known = InputStatistics.from_tokens(layer.draw_known(4 * problem.score_tokens))
        method, problem = "fast", replace(problem, statistics=known)
    if method == NOTHING:
        columns = problem.weight.shape[1]
        gelu = ((0, columns),) if layer.after_gelu else ()
        drawn = InputStatistics.synthetic(columns, gelu, problem.score_tokens, torch.Generator().manual_seed(0))
        method, problem = "fast", replace(problem, statistics=drawn.to(problem.weight.device))
    if method in PROGRAMS:
        rows, columns = problem.weight.shape
        parts = PROGRAMS[method](problem, PartPlan((0, rows), (0, columns)))
        return program_error(parts, problem, layer.held_out)
    return held_out_error(method, problem, layer.held_out)


def error_in_w4a4(layer: SyntheticLayer) -> float:
    """Held-out error at W4A4 of the weights that `best` makes for W4A8."""
    problem, way = pose(layer, activations="w4a8"), METHODS["best"]
    fit = way.solve(way.adapt(problem))
    unseen = InputStatistics.from_tokens(layer.held_out)
    return fit.error(replace(pose(layer), statistics=unseen, score_tokens=len(layer.held_out)))


def tables(names: list[str]) -> dict[str, dict[str, Row]]:
    """Title -> label -> how the error is found; names are of TABLES."""
    found: dict[str, dict[str, Row]] = {}
    if "methods" in names:
        found[W4A4] = {LABELS[m]: lambda layer, m=m: solve(m, pose(layer), layer) for m in LABELS}
        found[W4A8] = {LABELS[m]: lambda layer, m=m: solve(m, pose(layer, "int4", "w4a8"), layer) for m in COMPARED}
        found[W4A8][VIDIT] = lambda layer: solve("vidit_q", pose(layer, "int4", "w4a8"), layer)
        found[W4A8][SAME_WEIGHTS] = error_in_w4a4
        found[NVFP4] = {LABELS[m]: lambda layer, m=m: solve(m, pose(layer, "nvfp4"), layer) for m in COMPARED}
    if "ranks" in names:
        for mode in ("w4a4", "w4a8"):
            rows = {
                f"rank {r}": lambda layer, r=r, m=mode: solve("best", pose(layer, "int4", m, r), layer) for r in RANKS
            }
            found[f"Ours: best, INT4, {mode.upper()}, by rank"] = rows
    if "bits" in names:
        found["Weights and activations of equal width, rank 32"] = {
            f"{LABELS[m]}, {b} bits": lambda layer, m=m, b=b: solve(m, with_bits(pose(layer), b, b), layer)
            for m in ("nearest", "smoothquant", "paper", "best")
            for b in BITS
        }
    if "scales" in names:
        found["NVFP4, rounded to nearest, no branch: how scales are chosen"] = {
            "weights, largest value to 6": lambda layer: e2m1_error(layer, "weights", (SIX,)),
            "weights, Four-Over-Six": lambda layer: e2m1_error(layer, "weights", (SIX, FOUR)),
            "weights, eleven e4m3 numbers, as ours": lambda layer: e2m1_error(layer, "weights", None),
            "activations, largest value to 6, as ours": lambda layer: e2m1_error(layer, "activations", (SIX,)),
            "activations, Four-Over-Six": lambda layer: e2m1_error(layer, "activations", (SIX, FOUR)),
        }
    return found


def e2m1_error(layer: SyntheticLayer, of: str, tops: tuple[float, ...] | None) -> float:
    """Held-out error with weights or activations in NVFP4 and the other as it is.

    Args:
        of: "weights" or "activations". tops: what a group's largest value may become; None: the quantizer's search.
    """
    x, weight = layer.held_out, layer.weight
    exact = x @ weight.T
    if of == "weights":
        scales = fit_scales(weight, NVFP4_GRID, torch.bfloat16) if tops is None else None
        largest = None if tops is None else weight.abs().amax() / (SIX * E4M3_MAX)
        if scales is not None:
            weight = units_to_values(round_to_units(weight, scales, NVFP4_GRID), scales, NVFP4_GRID)
        else:
            weight = _round_to_tops(weight, tops or (SIX,), largest)
    else:
        x = _round_to_tops(x, tops or (SIX,), None)
    return float((x @ weight.T - exact).norm() / exact.norm())


def _round_to_tops(values: torch.Tensor, tops: tuple[float, ...], factor: torch.Tensor | None) -> torch.Tensor:
    """E2M1 values whose groups take the scale of the least squared error among those that bring them to one of tops."""
    groups, factor = NVFP4_GRID.groups(values), torch.ones(1).to(values) if factor is None else factor
    best, least = torch.zeros_like(groups), torch.full_like(groups[..., :1], torch.inf)
    for top in tops:
        scales = (groups.abs().amax(dim=-1, keepdim=True) / top / factor).clamp(max=E4M3_MAX)
        scales = scales.to(torch.float8_e4m3fn).float() * factor
        rounded = NVFP4_GRID.snap(groups / torch.where(scales > 0, scales, 1.0)) * scales
        error = (rounded - groups).square().sum(dim=-1, keepdim=True)
        best = torch.where(error < least, rounded, best)
        least = torch.minimum(error, least)
    return best.flatten(-2)


TABLES = ("methods", "ranks", "bits", "scales")


@dataclass
class LayerRun:
    """Errors of all rows on layers of some seeds.

    Args:
        layers: keys of SHAPES. seeds: how many. device: where the arithmetic runs.
        seconds: after which no further layer is begun.
    """

    layers: list[str]
    seeds: int
    device: str
    seconds: float = float("inf")
    errors: dict[str, Errors] = field(default_factory=dict)

    def measure(self, asked: dict[str, dict[str, Row]]) -> float:
        """Fill `errors`, title -> row -> layer -> seeds; how long it took."""
        self.errors = {title: defaultdict(lambda: defaultdict(list)) for title in asked}
        started = longest = time.perf_counter()
        longest = 0.0
        for seed in range(self.seeds):
            for name in self.layers:
                begun = time.perf_counter()
                if begun - started + longest > self.seconds:
                    return begun - started
                layer = draw_layer(name, seed, self.device)
                for title, rows in asked.items():
                    for row, error in rows.items():
                        self.errors[title][row][name].append(error(layer))
                longest = max(longest, time.perf_counter() - begun)
        return time.perf_counter() - started

    def table(self, title: str) -> str:
        """Markdown."""
        errors = self.errors[title]
        names = [n for n in self.layers if errors and n in next(iter(errors.values()))]
        lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for row, found in errors.items():
            cells = (f"{statistics.mean(found[n]):.4f} ± {statistics.pstdev(found[n]):.4f}" for n in names)
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        seeds = {len(e) for found in errors.values() for e in found.values()}
        return f"### {title}\n\n" + "\n".join(lines) + f"\n\nseeds: {', '.join(map(str, sorted(seeds, reverse=True)))}"


def gains(errors: dict[str, list[float]], others: dict[str, list[float]]) -> dict[str, list[float]]:
    """Layer -> how much lower its errors are than others of the same seeds, as a share of them."""
    return {n: [1 - a / b for a, b in zip(errors[n], others[n], strict=True)] for n in errors}


def verdicts(errors: dict[str, Errors]) -> Iterator[str]:
    """A line for each claim: what it is, how much lower, on each layer and in the mean, and whether it is kept."""
    dc, paper, fast, best = (LABELS[m] for m in ("deepcompressor_gptq", "paper", "fast", "best"))
    w4a4, w4a8, nvfp4 = errors[W4A4], errors[W4A8], errors[NVFP4]
    claims = (
        ("best below DeepCompressor with GPTQ, W4A4", w4a4[best], w4a4[dc], 5),
        ("best below DeepCompressor with GPTQ, NVFP4", nvfp4[best], nvfp4[dc], 5),
        ("best at W4A8 below DeepCompressor with GPTQ at W4A4", w4a8[best], w4a4[dc], 40),
        ("best at W4A8 below the same weights at W4A4", w4a8[best], w4a8[SAME_WEIGHTS], 40),
        ("best at W4A8 below best at W4A4", w4a8[best], w4a4[best], 40),
        ("fast, inputs recorded, below the paper, W4A4", w4a4[fast], w4a4[paper], 0),
        ("fast, inputs recorded, below the paper, W4A8", w4a8[fast], w4a8[paper], 0),
        ("fast, inputs recorded, below the paper, NVFP4", nvfp4[fast], nvfp4[paper], 0),
        ("fast, channels known, below the paper, W4A4", w4a4[LABELS[CHANNELS]], w4a4[paper], 0),
        ("fast, channels known, below the paper, W4A8", w4a8[LABELS[CHANNELS]], w4a8[paper], 0),
        ("fast, channels known, below the paper, NVFP4", nvfp4[LABELS[CHANNELS]], nvfp4[paper], 0),
        ("fast, nothing known, below the paper, W4A8", w4a8[LABELS[NOTHING]], w4a8[paper], 0),
    )
    yield "| claim | at least | " + " | ".join(w4a4[best]) + " | mean | |"
    yield "|---" * (len(w4a4[best]) + 4) + "|"
    for claim, ours, others, least in claims:
        found = gains(ours, others)
        cells = [100 * statistics.mean(g) for g in found.values()]
        mean = 100 * statistics.mean(g for gain in found.values() for g in gain)
        verdict = "kept" if min(cells) >= least else "kept in the mean" if mean >= least else "not kept"
        shown = " | ".join(f"{cell:.1f} %" for cell in cells)
        yield f"| {claim} | {least} % | {shown} | {mean:.1f} % | {verdict} |"


__all__ = ["SHAPES", "TABLES", "LayerRun", "tables", "verdicts"]
