"""How long refining takes at the size of FLUX.1 and in how much GPU memory: one block of each kind, through ComfyUI.

python benchmarks/refine_time.py      a model of one double and one single block, then what all blocks would take

Weights are random, the way is the command's own: quantized with `fast`, refined on as many calls as a calibration
holds, of pictures of 1024 x 1024. Fewer steps than the command takes (--steps) are scaled up. COMFYUI_PATH names the
ComfyUI. Exit code 1: over the limits of GPU memory or time.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / room) for room in ("tools", "benchmarks")]
import torch  # noqa: E402
from quantize_time import find_opener  # noqa: E402
from synthetic_model import POOLED, SIZES, TEXT, Size, write_model  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from svdquant_pack.svdq_core.checkpoint.container import Checkpoint  # noqa: E402
from svdquant_pack.svdq_core.quantize.model_calls import KEPT  # noqa: E402
from svdquant_pack.svdq_core.quantize.refine import RefineSpec  # noqa: E402
from svdquant_pack.svdq_core.quantize.refine_block import BlockRuns  # noqa: E402
from svdquant_pack.svdq_core.quantize.refine_file import BlockReport, quantize_refined  # noqa: E402
from svdquant_pack.svdq_core.quantize.spec import QuantSpec  # noqa: E402
from svdquant_pack.svdq_core.quantize.to_file import QuantizeJob  # noqa: E402

GPU_BYTES = 12e9
LIMIT_SECONDS = 1200
WHOLE = SIZES["FLUX.1-dev"]


class TimedRuns:
    """BlockRuns that note how long each block takes, from coming to it to coming to the next."""

    def __init__(self, runs: BlockRuns, device: torch.device):
        self.runs, self.device = runs, device
        self.seconds: dict[str, float] = {}
        self._block, self._began = "", time.perf_counter()

    def advance(self) -> str | None:
        block = self.runs.advance()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._block or "before the first block"] = now - self._began
        self._block, self._began = block or "", now
        return block

    def leave(self, linears: Mapping[str, nn.Module]) -> None:
        self.runs.leave(linears)

    def here(self):
        return self.runs.here()

    def close(self) -> None:
        self.runs.close()


def draw_calls(side: int) -> list[dict[str, Tensor]]:
    """Calls of a FLUX.1 as ComfyUI's sampler makes them, of noise: (1, 16, side, side) latents, 512 tokens of text."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "x": torch.randn(1, 16, side, side, generator=generator),
            "t": torch.tensor([(place + 0.5) / KEPT]),
            "c_crossattn": torch.randn(1, 512, TEXT, generator=generator),
            "y": torch.randn(1, POOLED, generator=generator),
            "guidance": torch.tensor([3.5]),
        }
        for place in range(KEPT)
    ]


def measure(
    size: Size, spec: RefineSpec, side: int, device: torch.device, folder: Path
) -> tuple[TimedRuns, list[BlockReport], dict[str, float]]:
    """Quantize and refine a model of random weights: times of blocks, what came of them, seconds of a step in each."""
    source = folder / "source.safetensors"
    write_model(source, size, device)
    model = find_opener(device.type)(Checkpoint(source), 0, device)
    assert model.runs is not None, "ComfyUI runs it"
    make, timed = model.runs(draw_calls(side)), []

    def runs(weights: Mapping[str, Tensor]) -> TimedRuns:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        timed.append(TimedRuns(make(weights), device))
        return timed[0]

    job = QuantizeJob(
        model.architecture,
        model.plan,
        model.weights,
        list(model.weights),
        QuantSpec(),
        device,
        folder / "refined.safetensors",
        "benchmark",
        inputs=model.inputs,
        extras=model.extras,
    )
    times: dict[str, list[float]] = {}

    def on_step(done: int, total: int, block: str) -> None:
        times.setdefault(block, []).append(time.perf_counter())

    _, reports = quantize_refined(job, runs, spec, on_step=on_step)
    steps = {block: (found[-1] - found[0]) / max(len(found) - 1, 1) for block, found in times.items()}
    return timed[0], reports, steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=WHOLE.width, help="of the residual stream")
    parser.add_argument("--side", type=int, default=128, help="of the latents; 128: pictures of 1024 x 1024")
    parser.add_argument("--steps", type=int, default=RefineSpec.steps)
    parser.add_argument("--samples", type=int, default=RefineSpec.samples, help="in each step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(GPU_BYTES / torch.cuda.get_device_properties(0).total_memory)
    spec = RefineSpec(options.steps, options.samples)
    with tempfile.TemporaryDirectory() as folder:
        runs, reports, steps = measure(Size("flux", options.width, (1, 1)), spec, options.side, device, Path(folder))
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    missing = RefineSpec.steps - spec.steps
    print(f"{spec}\n\n| block | seconds of a step | of {RefineSpec.steps} and the rest | error of its output x |")
    print("|---|---|---|---|")
    for report in reports:
        runs.seconds[report.block] += missing * steps[report.block]
        row = f"{steps[report.block]:.4f} | {runs.seconds[report.block]:.1f} | {report.factor:.3f}"
        print(f"| {report.block} | {row} |")
    double, single = (runs.seconds[report.block] for report in reports)
    whole = double * WHOLE.blocks[0] + single * WHOLE.blocks[1]
    print(f"\n{WHOLE.blocks[0]} + {WHOLE.blocks[1]} blocks: {whole:.0f} s; at most {peak / 1e9:.2f} GB of GPU memory")
    return int(whole > LIMIT_SECONDS or peak > GPU_BYTES)


if __name__ == "__main__":
    sys.exit(main())
