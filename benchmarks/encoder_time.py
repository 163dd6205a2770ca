"""How long rounding text encoders to 4 bits takes, by the weights and by prompts, and what it costs in memory.

usage: python benchmarks/encoder_time.py [--device cuda] [--group 64] [--scale 1] [--check] [--commit X]

One layer of each shape is rounded and its time multiplied by how many there are, at the published sizes (divided by
--scale). Weights and inputs are random. Reading, writing and the runs of the encoder are not in it. --check first
compares GPTQ on the device with the same on the CPU.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / room) for room in ("tests", "tools", "benchmarks")]

import torch  # noqa: E402
from machine import header  # noqa: E402

from svdquant_pack.svdq_core.quantize.statistics import InputStatistics  # noqa: E402
from svdquant_pack.svdq_core.quantize.w4a16 import W4A16Fit, fit_w4a16  # noqa: E402

TOKENS, KEPT = 2048, 512
# encoder -> layers, {(outputs, inputs): how many of a layer}
ENCODERS = {
    "T5-XXL": (24, {(4096, 4096): 4, (10240, 4096): 2, (4096, 10240): 1}),
    "Qwen2.5-VL 7B": (28, {(3584, 3584): 2, (512, 3584): 2, (18944, 3584): 2, (3584, 18944): 1}),
    "Gemma 3 12B": (48, {(4096, 3840): 1, (2048, 3840): 2, (3840, 4096): 1, (15360, 3840): 2, (3840, 15360): 1}),
    "Mistral 3 24B": (40, {(4096, 5120): 1, (1024, 5120): 2, (5120, 4096): 1, (32768, 5120): 2, (5120, 32768): 1}),
}


def draw(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, InputStatistics]:
    generator = torch.Generator(device).manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator, device=device) * columns**-0.5
    shared = torch.randn(64, columns, generator=generator, device=device)  # tokens of a text have much in common
    tokens = torch.randn(TOKENS, 64, generator=generator, device=device) @ shared / 8
    tokens += torch.randn(TOKENS, columns, generator=generator, device=device)
    seen = tokens[KEPT:]
    return weight, InputStatistics(
        tokens=tokens[:KEPT],
        mean_square=seen.square().mean(dim=0),
        absmax=seen.abs().amax(dim=0),
        count=len(seen),
        hessians={(0, columns): seen.T @ seen / len(seen)},
        hessian_count=len(seen),
    )


def timed(run, device: torch.device) -> tuple[W4A16Fit, float]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    found = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return found, time.perf_counter() - started


def check(device: torch.device, group: int) -> None:
    weight, statistics = draw(256, 512, torch.device("cpu"))
    ours = fit_w4a16(weight.to(device), group, torch.bfloat16, statistics.to(device))
    theirs = fit_w4a16(weight, group, torch.bfloat16, statistics)
    same = float((ours.codes.cpu() == theirs.codes).float().mean())
    if ours.rounding != theirs.rounding or same < 0.99:
        raise SystemExit(f"GPTQ on {device} gives {same:.1%} of the codes of the CPU: not the same")
    print(f"GPTQ on {device}: {same:.2%} of the codes are the CPU's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--commit", help="what to print for it")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(header(options.commit))
    if options.check:
        check(device, options.group)
    fit_w4a16(draw(256, 512, device)[0], options.group, torch.bfloat16)  # starts the device
    print("| encoder | fast, s | best, s | error of a layer, fast -> best | most memory, GiB |\n|---|---|---|---|---|")
    for title, (layers, shapes) in ENCODERS.items():
        seconds, errors = [0.0, 0.0], [0.0, 0.0]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for (rows, columns), count in shapes.items():
            weight, statistics = draw(
                *(max(128, size // options.scale // 128 * 128) for size in (rows, columns)), device
            )
            target = statistics.tokens @ weight.T
            for i, seen in enumerate((None, statistics)):
                run = lambda seen=seen, weight=weight: fit_w4a16(weight, options.group, torch.bfloat16, seen)  # noqa: E731
                fit, spent = timed(run, device)
                seconds[i] += layers * count * spent
                error = (statistics.tokens @ fit.values.T - target).norm() / target.norm()
                errors[i] += float(error) * count / sum(shapes.values())
        memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
        print(f"| {title} | {seconds[0]:.1f} | {seconds[1]:.1f} | {errors[0]:.3f} -> {errors[1]:.3f} | {memory:.1f} |")


if __name__ == "__main__":
    main()
