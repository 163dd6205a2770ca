"""How long quantizing other families takes, in how much memory: ComfyUI's own classes at their published sizes.

    COMFYUI_PATH=... python benchmarks/quantize_families.py                     a GPU, about 7 minutes, no disk
    COMFYUI_PATH=... python benchmarks/quantize_families.py --models zimage --whole

Opened, planned and quantized as the command does it; only the file is random weights in main memory, of which tensors
are pieces, so what a disk takes to read comes on top. A
run that has used up --seconds stops; its time is then that of the layers that it did, by the weights of all. Prints
Markdown. Exits with 1 if a limit of time or memory is not kept.
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
import zlib
from contextlib import suppress
from pathlib import Path

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
BANK = 1 << 26  # numbers, for each width of weights
GPU_BYTES, MAIN_BYTES = 12e9, 16e9
SHARED_MEMORY = Path("/dev/shm")


class TimeUsedUpError(Exception):
    """A run has used up its time."""


def random_checkpoint(family, config: dict, device: str):
    """A Checkpoint without a file: random weights of a family, drawn on the device whenever they are read."""
    import torch

    from svdquant_pack.svdq_core.checkpoint import Checkpoint

    class RandomCheckpoint(Checkpoint):
        def __init__(self):
            self.path, self.base, self.flags = Path("random.safetensors"), None, {}
            self.metadata, self.shapes = dict(family.metadata or {}), family.shapes(config)
            self.banks: dict[float, torch.Tensor] = {}

        def __getitem__(self, name):
            shape = self.shapes[name]
            count = math.prod(shape)
            scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.02
            bank = self.banks.get(scale)
            if bank is None or len(bank) < count:
                size = max(count, BANK if len(shape) > 1 and count > BANK >> 8 else count)
                generator = torch.Generator(device).manual_seed(len(self.banks))
                drawn = torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16)
                bank = self.banks[scale] = (drawn * scale).cpu()
            start = zlib.crc32(name.encode()) % (len(bank) - count + 1)
            found = bank[start : start + count].view(shape)
            return found + 1 if len(shape) < 2 and "norm" in name and not name.endswith("bias") else found

        def __iter__(self):
            return iter(self.shapes)

        def __len__(self):
            return len(self.shapes)

        def __contains__(self, name):
            return name in self.shapes

        def dtype(self, name):
            return "BF16"

        def shape(self, name):
            return self.shapes[name]

        def sidecar(self):
            return ""

    return RandomCheckpoint()


def measure(name: str, options: argparse.Namespace) -> list[dict]:
    """Both methods on one family, in this process."""
    import torch
    from quantize_time import find_opener

    find_opener(options.device)
    return _measure(name, torch.device(options.device), options)


def _measure(name: str, device, options: argparse.Namespace) -> list[dict]:
    import torch
    from families.models import detected_as
    from families.registry import FAMILIES
    from quantize_time import peak_memory

    from svdquant_pack.nodes.host.quantize.file_source import open_source
    from svdquant_pack.svdq_core.quantize.spec import QuantSpec
    from svdquant_pack.svdq_core.quantize.to_file import QuantizeJob, quantize_to_file

    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(GPU_BYTES / torch.cuda.get_device_properties(0).total_memory)
        torch.ones(1, device=device).sum().item()
    family = FAMILIES[name]
    config = family.tiny_config if options.tiny else family.published
    rows = []
    for method in options.methods:
        _forget_peak()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        spec = QuantSpec(options.precision, options.activations, 32, method)
        started = time.perf_counter()
        with detected_as(family, config):
            source = open_source(random_checkpoint(family, config, options.device), 0, device)
        opened = time.perf_counter()
        folder = options.folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir()))
        place = Path(tempfile.mkdtemp(dir=folder))
        weights = {layer.name: layer.weights for layer in source.plan.quantized}
        done: list[float] = []
        last = opened

        def on_layer(count: int, total: int, layer: str, *, weights=weights, done=done, opened=opened) -> None:
            nonlocal last
            done.append(weights[layer])
            last = time.perf_counter()
            if not options.whole and last - opened > options.seconds:
                raise TimeUsedUpError

        job = QuantizeJob(
            source.architecture,
            source.plan,
            source.weights,
            list(source.weights),
            spec,
            device,
            place / "quantized.safetensors",
            "bench",
            inputs=source.inputs,
            extras=source.extras,
        )
        try:
            quantize_to_file(job, on_layer)
        except TimeUsedUpError:
            finished = False
        else:
            finished, last = True, time.perf_counter()
        finally:
            shutil.rmtree(place, ignore_errors=True)
        part = sum(done) / sum(weights.values())
        rows.append(
            {
                "model": name,
                "method": method,
                "parameters": source.plan.parameters,
                "share": source.plan.share(),
                "opening": opened - started,
                "layers": last - opened,
                "part": 1.0 if finished else part,
                "seconds": (opened - started) + (last - opened) / (1.0 if finished else part),
                "gpu": torch.cuda.max_memory_reserved() if device.type == "cuda" else 0,
                "main": peak_memory(),
                "file": source.plan.nbytes(spec),
                "notes": list(source.notes),
            }
        )
    return rows


def _forget_peak() -> None:
    """So that the most memory is that from now on; Linux alone can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def row_of(found: dict) -> tuple[str, bool]:
    """A line of the table, and whether all limits are kept."""
    limit = LIMITS[found["model"]][found["method"] == "best"]
    kept = found["seconds"] <= limit and found["gpu"] <= GPU_BYTES and found["main"] <= MAIN_BYTES
    how = "whole" if found["part"] == 1.0 else f"{found['part']:.0%} of the weights"
    return (
        f"| {found['model']} | {found['parameters'] / 1e9:.1f} | {found['share']:.1%} | {found['method']} | "
        f"{found['opening']:.1f} | {found['layers']:.1f} ({how}) | {found['seconds']:.0f} | {limit} | "
        f"{found['gpu'] / 1e9:.1f} | {found['main'] / 1e9:.1f} | {found['file'] / 2**30:.1f} | "
        f"{'kept' if kept else '**NOT kept**'} |"
    ), kept


HEADER = (
    "| model | billions | in 4 bits | method | s to open | s measured | s for all | s allowed | GPU GB | main GB | "
    "file GiB | limits |\n|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---|"
)


def main() -> int:
    """Print the table, each family in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--methods", nargs="+", choices=["fast", "best"], default=["fast", "best"])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each model and method (20)")
    parser.add_argument("--whole", action="store_true", help="whatever it takes")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--activations", default="w4a8")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--folder", type=Path, help="for the files (memory)")
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
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
