"""How long quantizing a whole model takes, stage by stage, in how much memory: the real command on a file of real size.

Each run is a process of its own, whose GPU memory is limited; its main memory is what Linux says it had at most, mapped
files included. Weights are random; a calibration is drawn in memory, so its 50 GiB are moved to the GPU, not read.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / room) for room in ("tools", "benchmarks")]
import torch  # noqa: E402
from comfyui_library import find_comfyui, import_comfyui  # noqa: E402
from quantize_stages import STAGES, Stages  # noqa: E402
from synthetic_model import SIZES, Size, SyntheticCalibration, write_model  # noqa: E402

from svdquant_pack.svdq_core.checkpoint.container import Checkpoint  # noqa: E402
from svdquant_pack.svdq_core.checkpoint.dense_read import DenseModel  # noqa: E402
from svdquant_pack.svdq_core.quantize.command import QuantizeRequest, quantize_file  # noqa: E402
from svdquant_pack.svdq_core.quantize.overrides import Overrides  # noqa: E402
from svdquant_pack.svdq_core.quantize.source_model import OpenSource, open_described, plan_dense  # noqa: E402
from svdquant_pack.svdq_core.quantize.spec import QuantSpec  # noqa: E402
from svdquant_pack.svdq_core.quantize.to_file import QuantizeJob, quantize_to_file  # noqa: E402

GPU_BYTES = 12e9  # what a run may take
DISK_TRIAL_BYTES = 1 << 30


class OutOfTimeError(Exception):
    """The deadline of a run has passed."""


def measure(options: argparse.Namespace) -> dict:
    """One run in this process: seconds by stage and in all, bytes of memory, seconds of each layer by kind."""
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(GPU_BYTES / torch.cuda.get_device_properties(0).total_memory)
        torch.ones(1, device=device).sum().item()
    size = Size(options.family, options.width, tuple(options.blocks))
    source, target = Path(options.source), Path(options.target)
    spec = QuantSpec(options.precision, options.activations, 32, options.method)
    calibration = SyntheticCalibration(size, device) if options.method == "best" else None
    if calibration is not None:
        for name in calibration.names:
            calibration[name]  # drawn before the clock starts
    opener = find_opener(options.device)
    started = last = time.perf_counter()
    layers: dict[str, list[float]] = defaultdict(list)
    stages, finished = Stages(device), False

    def on_layer(done: int, total: int, name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        layers[name.split(".")[0]].append(now - last)
        last = now
        if now - started > options.seconds:
            raise OutOfTimeError

    try:
        with stages.timed():
            if calibration is None:
                request = QuantizeRequest(source, target, spec, Overrides(), device=options.device, overwrite=True)
                quantize_file(request, lambda line: sys.stderr.write(f"{line}\n"), on_layer, opener)
            else:
                model = DenseModel(Checkpoint(source))
                job = QuantizeJob(
                    model.architecture,
                    plan_dense(model),
                    model,
                    list(model),
                    spec,
                    device,
                    target,
                    "bench",
                    calibration=calibration,
                )
                quantize_to_file(job, on_layer)
        finished = True
    except OutOfTimeError:
        pass
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "finished": finished,
        "stages": dict(stages.seconds),
        "layers": layers,
        "gpu": torch.cuda.max_memory_reserved() if device.type == "cuda" else 0,
        "main": peak_memory(),
        "written": target.stat().st_size if finished else 0,
    }


def find_opener(device: str) -> OpenSource:
    """ComfyUI's own model, as the command uses it where there is one."""
    host = find_comfyui(None)
    if host is None:
        sys.stderr.write("no ComfyUI (COMFYUI_PATH): inputs are taken for standard normal\n")
        return open_described
    problem = import_comfyui(host, device)
    if problem:
        raise SystemExit(problem)
    from svdquant_pack.nodes.host.quantize.file_source import open_source

    return open_source


def peak_memory() -> int:
    """The most main memory that this process had, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def run_apart(size: Size, source: Path, method: str, options: argparse.Namespace, seconds: float) -> dict:
    """measure() in a process of its own."""
    target = source.with_name("quantized.safetensors")
    command = [sys.executable, __file__, str(source), str(target), "--family", size.family, "--width", str(size.width)]
    command += ["--blocks", *map(str, size.blocks), "--method", method, "--seconds", str(seconds)]
    command += ["--device", options.device, "--precision", options.precision, "--activations", options.activations]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1:], "log": done.stderr[-4000:]}
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": ["did not end in time"], "log": ""}
    finally:
        for path in (target, *target.parent.glob("quantized.safetensors.journal/*")):
            path.unlink(missing_ok=True)
    return found | {"process": time.perf_counter() - started, "log": done.stderr[-4000:]}


def estimate(found: dict, part: Size, whole: Size) -> float:
    """Seconds for a model of more blocks, from a run over fewer: each kind of layer as often as it occurs."""
    count = {host: whole.counts[host] / n for host, n in part.counts.items() if n}
    layers = sum(sum(times) * count[kind] for kind, times in found["layers"].items())
    rest = found["seconds"] - sum(sum(times) for times in found["layers"].values())
    return layers + rest * max(count.values())


def disk_rate(folder: Path) -> float:
    """Bytes a second that reach the disk below a folder."""
    path, block = folder / "disk-trial", os.urandom(1 << 24)
    started = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(DISK_TRIAL_BYTES >> 24):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return DISK_TRIAL_BYTES / (time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)


def stage_table(runs: dict[str, dict]) -> str:
    """Markdown: a column for each run, seconds by stage."""

    def row(title: str, cells: list[float], form: str = "{:.1f}") -> None:
        lines.append(f"| {title} | " + " | ".join(form.format(cell) for cell in cells) + " |")

    lines = ["| seconds | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for stage in STAGES:
        cells = [found["stages"].get(stage, 0.0) for found in runs.values()]
        if any(cells):
            row(stage, cells)
    row("everything else", [found["seconds"] - sum(found["stages"].values()) for found in runs.values()])
    row("**in all**", [found["seconds"] for found in runs.values()], "**{:.1f}**")
    row("peak GPU memory, GB", [found["gpu"] / 1e9 for found in runs.values()])
    row("peak main memory, GB", [found["main"] / 1e9 for found in runs.values()])
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--family", default="flux")
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--blocks", type=int, nargs="+", default=[19, 38])
    parser.add_argument("--method", default="fast")
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--activations", default="w4a8")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    sys.stdout.write(json.dumps(measure(parser.parse_args())) + "\n")
    return 0


__all__ = ["GPU_BYTES", "SIZES", "disk_rate", "estimate", "run_apart", "stage_table", "write_model"]

if __name__ == "__main__":
    sys.exit(main())
