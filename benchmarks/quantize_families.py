"""How long quantizing other families takes, in how much memory: ComfyUI's own classes at their published sizes.

    COMFYUI_PATH=... python benchmarks/quantize_families.py                     a GPU, about 12 minutes, no disk
    COMFYUI_PATH=... python benchmarks/quantize_families.py --models zimage --whole

Opened, planned and quantized as the command does it; only the file is random weights in main memory, of which tensors
are pieces, so what a disk takes to read comes on top; with --file it is a file. First two blocks of each kind are
quantized, which also compiles the kernels; how long that took stands apart, the other times are without it. Then so
many blocks of each kind as take about --seconds, and what comes out in the end; the time for all is that of each kind
by the number of its blocks, and that of the end by the size of the file. The allocator gets 12 GB of the GPU. Prints
Markdown, with --course memory after each block. Exits with 1 if a limit of time or memory is not kept.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / room) for room in ("tests", "tools", "benchmarks")]

# family -> seconds allowed with fast and with best
LIMITS = {
    "zimage": (30, 120),
    "krea2": (50, 200),
    "wan_t2v": (60, 240),  # both models of Wan 2.2 14B have these sizes
    "flux1": (41, 160),
    "qwen_image": (75, 300),
    "ltx23": (90, 360),
    "minimax_h3": (120, 480),
}
GPU_BYTES, MAIN_BYTES = 12e9, 16e9
SHARED_MEMORY = Path("/dev/shm")


def measure(name: str, options: argparse.Namespace) -> list[dict]:
    """All methods on one family, in this process."""
    import torch
    from quantize_time import find_opener

    find_opener(options.device)
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(GPU_BYTES / torch.cuda.get_device_properties(0).total_memory)
        torch.ones(1, device=device).sum().item()
    return [_measure(name, method, device, options) for method in options.methods]


def _measure(name: str, method: str, device, options: argparse.Namespace) -> dict:
    import torch
    from families.models import detected_as
    from families.registry import FAMILIES
    from quantize_time import peak_memory
    from random_checkpoint import random_checkpoint, write_file

    from svdquant_pack.nodes.host.quantize.file_source import open_source
    from svdquant_pack.svdq_core.quantize.spec import QuantSpec

    family = FAMILIES[name]
    config = family.tiny_config if options.tiny else family.published
    checkpoint = random_checkpoint(family, config, options.device)
    written = 0.0
    if options.file:
        checkpoint, written = write_file(checkpoint, options.file / f"{name}.safetensors")
    started = time.perf_counter()
    with detected_as(family, config):
        source = open_source(checkpoint, 0, device)
    opening = time.perf_counter() - started
    spec = QuantSpec(options.precision, options.activations, 32, method)
    kinds = kinds_of(source.plan)
    trial = run_blocks(source, first_blocks(kinds, dict.fromkeys(kinds, 2)), spec, device, options)
    each = {kind: trial.blocks[blocks[:2][-1]] for kind, blocks in kinds.items()}  # the first one compiles
    total = sum(len(blocks) * each[kind] for kind, blocks in kinds.items())
    count = {kind: max(2, math.ceil(len(blocks) * options.seconds / total)) for kind, blocks in kinds.items()}
    if options.whole or total <= options.seconds:
        count = {kind: len(blocks) for kind, blocks in kinds.items()}
    _forget_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run = run_blocks(source, first_blocks(kinds, count), spec, device, options)
    done = {kind: [run.blocks[b] for b in blocks if b in run.blocks] for kind, blocks in kinds.items()}
    layers = sum(len(kinds[kind]) * sum(spent) / len(spent) for kind, spent in done.items())
    return {
        "model": name,
        "method": method,
        "parameters": source.plan.parameters,
        "share": source.plan.share(),
        "opening": opening,
        "compiling": max(0.0, sum(trial.blocks[blocks[0]] - each[kind] for kind, blocks in kinds.items())),
        "measured": sum(run.blocks.values()) + run.ending,
        "done": [sum(map(len, done.values())), sum(map(len, kinds.values()))],
        "seconds": opening + layers + run.ending * source.plan.nbytes(spec) / run.nbytes,
        "gpu": torch.cuda.max_memory_reserved() if device.type == "cuda" else 0,
        "main": peak_memory(),
        "file": source.plan.nbytes(spec),
        "course": run.course,
        "written": written,
        "notes": list(source.notes),
    }


def kinds_of(plan) -> dict[str, list[str]]:
    """Kind of block -> its blocks that have quantized layers."""
    kinds: dict[str, list[str]] = {}
    for block in plan.blocks:
        kinds.setdefault(block.rpartition(".")[0], []).append(block)
    return kinds


def first_blocks(kinds: dict[str, list[str]], count: dict[str, int]) -> set[str]:
    """So many of each kind."""
    return {block for kind, blocks in kinds.items() for block in blocks[: count[kind]]}


class BlockRun(NamedTuple):
    """One run over some blocks.

    Args:
        blocks: name -> seconds, the inputs of its layers included. ending: seconds from the last layer to the file.
        nbytes: about how large the file became. course: (block, GB of the GPU, GB of main memory) at their ends.
    """

    blocks: dict[str, float]
    ending: float
    nbytes: int
    course: list[tuple[str, float, float]]


def run_blocks(source, wanted: set[str], spec, device, options: argparse.Namespace) -> BlockRun:
    """Quantize some blocks of a model into a file, as the command does it."""
    import torch

    from svdquant_pack.svdq_core.quantize.to_file import QuantizeJob, quantize_to_file

    plan = source.plan
    left_out = {layer.name for layer in plan if layer.block not in wanted and layer.parts is not None}
    layers = {name: layer for name, layer in plan.layers.items() if name not in left_out}
    part = replace(plan, layers=layers, parameters=plan.parameters - sum(plan[name].weights for name in left_out))
    names = [name for name in source.weights if name.rpartition(".")[0] not in left_out]
    blocks: dict[str, float] = {}
    course = []
    last = time.perf_counter()

    def on_layer(_count: int, _total: int, layer: str) -> None:
        nonlocal last
        now, block = time.perf_counter(), layers[layer].block
        blocks[block] = blocks.get(block, 0.0) + now - last
        last = now
        taken = torch.cuda.memory_reserved() if device.type == "cuda" else 0
        if course and course[-1][0] == block:
            course.pop()
        course.append((block, taken / 1e9, memory_now() / 1e9))

    folder = options.folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()))
    place = Path(tempfile.mkdtemp(dir=folder))
    job = QuantizeJob(
        source.architecture,
        part,
        source.weights,
        names,
        spec,
        device,
        place / "quantized.safetensors",
        "bench",
        inputs=source.inputs,
        extras=source.extras,
    )
    try:
        quantize_to_file(job, on_layer)
        return BlockRun(blocks, time.perf_counter() - last, part.nbytes(spec), course)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def memory_now() -> int:
    """Main memory of this process, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def _forget_peak() -> None:
    """So that the most memory is that from now on; Linux alone can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def row_of(found: dict) -> tuple[str, bool]:
    """A line of the table, and whether all limits are kept."""
    limit = LIMITS[found["model"]][found["method"] == "best"]
    kept = found["seconds"] <= limit and found["gpu"] <= GPU_BYTES and found["main"] <= MAIN_BYTES
    done, blocks = found["done"]
    return (
        f"| {found['model']} | {found['parameters'] / 1e9:.1f} | {found['share']:.1%} | {found['method']} | "
        f"{found['opening']:.1f} | {found['compiling']:.1f} | {found['measured']:.1f} ({done} of {blocks}) | "
        f"{found['seconds']:.0f} | {limit} | {found['gpu'] / 1e9:.1f} | {found['main'] / 1e9:.1f} | "
        f"{found['file'] / 2**30:.1f} | {'kept' if kept else '**NOT kept**'} |"
    ), kept


HEADER = (
    "| model | billions | in 4 bits | method | s to open | s to compile | s measured (blocks) | s for all | "
    "s allowed | GPU GB | main GB | file GiB | limits |\n"
    "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"
)


def main() -> int:
    """Print the table, each family in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--methods", nargs="+", choices=["fast", "best"], default=["fast", "best"])
    parser.add_argument("--seconds", type=float, default=25.0, help="for each model and method (25)")
    parser.add_argument("--whole", action="store_true", help="whatever it takes")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--activations", default="w4a8")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, help="for the files (memory)")
    parser.add_argument("--file", type=Path, help="folder to write the weights to first: they are then read from there")
    parser.add_argument("--course", action="store_true", help="memory after each block")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see whether this script runs")
    parser.add_argument("--here", action="store_true", help="one model, in this process; prints JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.models[0], options)))
        return 0
    print(HEADER, flush=True)
    good = True
    for name in options.models:
        arguments = [a for a in sys.argv[1:] if a not in (*LIMITS, "--models")]
        command = [sys.executable, __file__, "--here", *arguments, "--models", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode:
            print(f"\n{name}: failed\n\n{done.stderr[-3000:]}\n", flush=True)
            good = False
            continue
        for found in json.loads(done.stdout.splitlines()[-1]):
            line, kept = row_of(found)
            good &= kept
            print(line + "".join(f"\n\n{note}\n" for note in found["notes"]), flush=True)
            if options.course:
                steps = [f"{block} {gpu:.1f}/{memory:.1f}" for block, gpu, memory in found["course"]]
                print(f"\nGPU/main GB after {', '.join(steps)}; the file was written in {found['written']:.0f} s\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
