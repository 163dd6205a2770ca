"""How long refining takes at the size of FLUX.1 and in how much GPU memory: one block of each kind, through ComfyUI.

python benchmarks/refine_time.py      a model of one double and one single block, then what all blocks would take

Weights are random, the way is the command's own: quantized with `fast`, refined on inputs from noise. COMFYUI_PATH
names the ComfyUI. Exit code 1: over the limits of GPU memory or time.
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
from synthetic_model import SIZES, Size, write_model  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from svdquant_pack.svdq_core.checkpoint.container import Checkpoint  # noqa: E402
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


def measure(size: Size, spec: RefineSpec, device: torch.device, folder: Path) -> tuple[TimedRuns, list[BlockReport]]:
    """Quantize and refine a model of random weights."""
    source = folder / "source.safetensors"
    write_model(source, size, device)
    model = find_opener(device.type)(Checkpoint(source), 0, device)
    assert model.runs is not None, "ComfyUI runs it"
    make, timed = model.runs, []

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
    _, reports = quantize_refined(job, runs, spec)
    return timed[0], reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=WHOLE.width, help="of the residual stream")
    parser.add_argument("--steps", type=int, default=RefineSpec.steps)
    parser.add_argument("--samples", type=int, default=RefineSpec.samples, help="in each step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(GPU_BYTES / torch.cuda.get_device_properties(0).total_memory)
    spec = RefineSpec(options.steps, options.samples)
    with tempfile.TemporaryDirectory() as folder:
        runs, reports = measure(Size("flux", options.width, (1, 1)), spec, device, Path(folder))
    peak = torch.cuda.max_memory_reserved() if device.type == "cuda" else 0
    print(f"{spec}\n\n| block | seconds | error of its output x |\n|---|---|---|")
    for report in reports:
        print(f"| {report.block} | {runs.seconds[report.block]:.1f} | {report.factor:.3f} |")
    double, single = (runs.seconds[report.block] for report in reports)
    whole = double * WHOLE.blocks[0] + single * WHOLE.blocks[1]
    print(f"\n{WHOLE.blocks[0]} + {WHOLE.blocks[1]} blocks: {whole:.0f} s; at most {peak / 1e9:.2f} GB of GPU memory")
    return int(whole > LIMIT_SECONDS or peak > GPU_BYTES)


if __name__ == "__main__":
    sys.exit(main())
