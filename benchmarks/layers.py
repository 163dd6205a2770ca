"""Time one quantized layer in every mode against BF16, FP8, int8 and other packs, on the GPU that is here.

    python benchmarks/layers.py                     all layer shapes of FLUX.1 and PixArt, as Markdown
    python benchmarks/layers.py --layers flux --tokens 4608 --rank 32 --seconds 0.1
    python benchmarks/layers.py --gpu-time          replayed as a CUDA graph: without the time Python takes to launch
    python benchmarks/layers.py --step              a whole denoising step in the host instead; see step.py
    python benchmarks/layers.py --quantize          quality and time of quantization instead; see quantize.py

Every row is checked against the reference first; a mismatch ends the program with no table. Everything a layer needs is
counted: quantizing activations, unpacking weights, low-rank branch, bias. Weights and activations are random. Rows take
turns, and a cell is the median of its turns: clocks change by more than kernels differ.
"""

import argparse
import logging
import math
import statistics
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / room) for room in ("tests", "tools", "benchmarks")]

if __name__ == "__main__" and "--step" in sys.argv[1:]:  # before torch, whose allocator the host chooses
    from step import main as _step

    sys.exit(_step([argument for argument in sys.argv[1:] if argument != "--step"]))
if __name__ == "__main__" and "--quantize" in sys.argv[1:]:
    from quantize import main as _quantize

    sys.exit(_quantize([argument for argument in sys.argv[1:] if argument != "--quantize"]))

import torch  # noqa: E402
from command_line import typed  # noqa: E402
from contenders import CONTENDERS, Layer, MismatchError  # noqa: E402
from machine import header  # noqa: E402

# out_features, in_features of the Linears that carry the work. linear1 and linear2 of FLUX are two such parts each.
LAYERS = {
    "flux": ((3072, 3072), (9216, 3072), (12288, 3072), (3072, 12288)),
    "pixart": ((1152, 1152), (3456, 1152), (4608, 1152), (1152, 4608)),
}
TOKENS = {"flux": (4608, 512), "pixart": (4096,)}  # 1024 x 1024 with 512 text tokens, the text alone
RANKS = (0, 32, 128)
TURNS = 5
# dense int8 operations a second, from the data sheets
INT8_PEAK = {"H200": 1979e12, "H100": 1979e12, "A100": 624e12, "4090": 660.6e12, "3090": 284e12, "5090": 838e12}


def _milliseconds(run, seconds: float, gpu_time: bool) -> float:
    from triton.testing import do_bench, do_bench_cudagraph

    if gpu_time:
        return do_bench_cudagraph(run, rep=int(seconds * 1000), return_mode="median")
    return do_bench(run, warmup=25, rep=int(seconds * 1000), return_mode="median")


def measure(kind: str, tokens: int, ranks: tuple[int, ...], seconds: float, gpu_time: bool) -> str:
    """One Markdown table: a row for each contender, a column for each layer shape, the last the geometric mean.

    Raises:
        MismatchError: a contender's result is not what the reference computes.
    """
    shapes = LAYERS[kind]
    rows: dict[str, list[float]] = {}
    left_out: set[str] = set()
    for out_features, in_features in shapes:
        runs: dict[str, Callable] = {}
        for rank in ranks:
            layer = Layer(tokens, out_features, in_features, rank)
            for contender in CONTENDERS:
                if rank != ranks[0] and not contender.has_rank:
                    continue
                name = contender.name + (f", rank {rank}" if contender.has_rank else "")
                run = None if name in left_out else contender.prepare(layer)
                if run is None:
                    continue
                try:
                    contender.check(layer, run)
                    _milliseconds(run, seconds / TURNS, gpu_time)
                except Exception as error:  # another library's fault costs its row, ours the table
                    if contender.expected is not None:
                        raise
                    sys.stderr.write(f"{name} is left out: {error}\n")
                    left_out.add(name)
                    rows.pop(name, None)
                    continue
                runs[name] = run
        turns = [
            {name: _milliseconds(run, seconds / TURNS, gpu_time) for name, run in runs.items()} for _ in range(TURNS)
        ]
        for name in runs:
            rows.setdefault(name, []).append(statistics.median(turn[name] for turn in turns))
        del runs, layer, run
        torch.cuda.empty_cache()
    return _table(rows, shapes, tokens)


def _table(rows: dict[str, list[float]], shapes, tokens: int) -> str:
    heads = [f"{k} → {n}" for n, k in shapes]
    base = rows["BF16 F.linear"]
    floor = [time for time in (_speed_of_light(tokens, n, k) for n, k in shapes) if time is not None]
    if len(floor) == len(shapes):
        rows = {**rows, "speed of light (int8 peak, measured copy rate)": floor}
    lines = [f"| ms, {tokens} tokens | " + " | ".join(heads) + " | against BF16 |", "|---" * (len(shapes) + 2) + "|"]
    for name, times in rows.items():
        if len(times) < len(shapes):
            continue  # cannot run every shape here
        speedup = math.exp(sum(math.log(b / t) for b, t in zip(base, times, strict=True)) / len(times))
        cells = " | ".join(f"{time:.4f}" for time in times)
        lines.append(f"| {name} | {cells} | {speedup:.2f}x |")
    return "\n".join(lines)


@cache
def _copy_rate() -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / (1e-3 * _milliseconds(lambda: target.copy_(source), 0.1, gpu_time=False))


def _speed_of_light(tokens: int, out_features: int, in_features: int) -> float | None:
    """Milliseconds that no w4a8 layer can beat on this GPU; None where its peak rate is not in the table."""
    name = torch.cuda.get_device_name(0)
    peak = next((rate for part, rate in INT8_PEAK.items() if part in name), None)
    if peak is None:
        return None
    moved = 2 * tokens * (in_features + out_features) + in_features * out_features / 2
    return 1e3 * max(2 * tokens * in_features * out_features / peak, moved / _copy_rate())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=typed(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", choices=LAYERS, help="one model's layers (default: all)")
    parser.add_argument("--tokens", type=int, help="tokens a layer sees (default: of a 1024 x 1024 image)")
    parser.add_argument("--rank", type=int, action="append", help="rank of the low-rank branch (default: 0, 32, 128)")
    parser.add_argument("--seconds", type=float, default=0.1, help="time spent on each cell (default: 0.1)")
    parser.add_argument("--commit", help="what to print for the commit where git is not (default: ask git)")
    parser.add_argument("--gpu-time", action="store_true", help="time CUDA graph replays, without launch overhead")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not torch.cuda.is_available():
        sys.stderr.write("The benchmark needs a GPU that torch can use.\n")
        return 2
    torch.manual_seed(0)
    tables = []
    try:
        for kind in [options.layers] if options.layers else LAYERS:
            for tokens in [options.tokens] if options.tokens else TOKENS[kind]:
                ranks = tuple(options.rank) if options.rank else RANKS
                table = measure(kind, tokens, ranks, options.seconds, options.gpu_time)
                tables.append(f"{kind}\n\n{table}\n")
    except MismatchError as error:
        sys.stderr.write(f"No table, because a result is wrong: {error}\n")
        return 1
    sys.stdout.write(header(options.commit) + (", GPU time" if options.gpu_time else "") + "\n\n")
    sys.stdout.write("\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
