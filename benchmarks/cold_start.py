"""What the first step waits for when no kernel is compiled yet, and what a later change waits for.

    COMFYUI_PATH=... python benchmarks/cold_start.py              FLUX.1-dev in its widths, two blocks of each kind
    COMFYUI_PATH=... python benchmarks/cold_start.py --inline     with nothing compiled ahead: each launch compiles
    COMFYUI_PATH=... python benchmarks/cold_start.py --seconds 60 start nothing new after a minute

Which kernels there are depends on the widths, not on how many blocks have them. The model is made and asked for a step
at once, with Triton's cache in an empty folder; loading a file and reading a prompt would give the compiler more time.
Then other sizes, batches and LoRAs. A row is one step; "beyond" is what it took beyond the same step again.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1] / "tools")]
import step as steps  # noqa: E402  (the folders above hold these)
from machine import header  # noqa: E402
from random_flux import Draw, start_host  # noqa: E402

# (side of the picture as a share of --pixels, batch, LoRA rank; 0: none)
CHANGES = [(0.5, 1, 0), (0.75, 1, 0), (1.25, 1, 0), (2, 1, 0), (0.5, 2, 0), (1, 4, 0)]
CHANGES += [(1, 1, 4), (1, 1, 16), (0.5, 1, 32), (1, 1, 128), (1, 1, 0)]


class ColdStart:
    """A model, and the table of what its steps wait for."""

    def __init__(self, options: argparse.Namespace, started: float):
        self.options, self.started = options, started
        before = time.perf_counter()
        self.subject = steps.Subject(options)
        self.step = steps.Step("w4a8+eager", self.subject)
        self.plain, self.rank = self.step.patcher, 0
        print(f"The model took {time.perf_counter() - before:.1f} s to make.\n", flush=True)

    def late(self) -> bool:
        """Whether nothing new is to begin."""
        return bool(self.options.seconds) and time.perf_counter() - self.started > self.options.seconds

    def row(self, share: float, batch: int, rank: int) -> float:
        """A step after a change; printed."""
        pixels = int(share * self.options.pixels[0])
        if rank != self.rank:
            self.step.patcher.unpatch_model(device_to=self.step.device)
            self.step.patcher, self.rank = self.with_lora(rank) if rank else self.plain, rank
            self.step.load()
        self.step.set_size(pixels, batch)
        first, again = self.seconds(), self.seconds()
        print(
            f"| {pixels} x {pixels}, batch {batch}, LoRA {rank or 'none'} | {first:.2f} | {first - again:.2f} |",
            flush=True,
        )
        return first

    def seconds(self) -> float:
        """Of one step."""
        start = time.perf_counter()
        self.step.run()
        if self.step.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter() - start

    def with_lora(self, rank: int):
        """A clone with a LoRA on every quantized layer."""
        from comfy.weight_adapter.lora import LoRAAdapter

        draw, clone = Draw(self.options.device, seed=rank), self.plain.clone()
        patches = {}
        for layer in self.subject.layers:
            down = draw.normal(rank, layer.in_features, scale=layer.in_features**-0.5)
            up = draw.normal(layer.out_features, rank, scale=0.02)
            adapter = LoRAAdapter(set(), (up, down, float(rank), None, None, None))
            patches[f"diffusion_model.{layer.name}.weight"] = adapter
        clone.add_patches(patches, 1.0)
        return clone


def wait_for_compiler() -> float:
    """Seconds until nothing is compiled in the background any more."""
    import threading

    start = time.perf_counter()
    while any(thread.name.startswith("svdquant-") for thread in threading.enumerate()):
        time.sleep(0.02)
    return time.perf_counter() - start


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line: that of step.py, and --inline."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--inline", action="store_true")
    known, others = own.parse_known_args(argv)
    options = steps.parse(others)
    options.inline, options.blocks = known.inline, options.blocks or 2
    return options


def main(argv: list[str]) -> int:
    started, options = time.perf_counter(), parse(argv)
    with tempfile.TemporaryDirectory(prefix="svdquant-cold-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # before Triton is imported
        if options.inline:
            os.environ["SVDQUANT_COMPILE_AHEAD"] = "0"
        flags = ["--use-pytorch-cross-attention", *(["--cpu"] if options.device == "cpu" else [])]
        start_host("legacy", tuple(flags))
        print(header(options.commit) + f", {os.cpu_count()} processors of the computer\n", flush=True)
        cold = ColdStart(options, started)
        print("| step | s | beyond |\n|---|---:|---:|")
        first = cold.row(1, 1, 0)
        waited = wait_for_compiler()
        print(f"| everything compiled, after that | {waited:.2f} | |", flush=True)
        for change in CHANGES:
            if not cold.late():
                cold.row(*change)
        print(f"\nThe first step took {first:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
