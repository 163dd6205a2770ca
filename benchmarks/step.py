"""One denoising step of a model in ComfyUI, and a whole image: ours, BF16, and what others run.

    COMFYUI_PATH=... python benchmarks/step.py                            tables of times and memory, as Markdown
    COMFYUI_PATH=... python benchmarks/step.py --rows bf16,w4a8,w4a8+lora --pixels 512,1024 --batch 1,4
    COMFYUI_PATH=... python benchmarks/step.py --image                    and one image of 20 steps from noise to latent
    COMFYUI_PATH=... python benchmarks/step.py --model zimage             another family than FLUX.1-dev
    COMFYUI_PATH=... python benchmarks/step.py --tiny                     a small model: shows whether it runs
    COMFYUI_PATH=... python benchmarks/step.py --seconds 120              start nothing new after two minutes

A row is a format, and what is done to it: bf16, fp8, int8, int8-convrot, w4a4-convrot (ComfyUI's own), gguf-q4, nf4
(weights unpacked to 16 bits in each call), w4a8, w4a4, w4a16 (ours, as the loader hands them over), each with
    +cudnn, +flash    cuDNN's attention, or what ComfyUI takes by itself
    +graph, +eager    the forward as one CUDA graph, or never as one; without either: as the pack decides
    +lora             a LoRA of rank 16 on every quantized layer, unmerged
    +compile          every block under torch.compile with fullgraph=True, which fails at a graph break

A model is a family of tests/families in its published sizes: flux1, zimage, krea2, qwen_image, minimax_h3, ... Weights
are random and made on the GPU; 512 text tokens. All models stay on the GPU, and rows take turns, so that all of them
see the same clocks: a time is the median of its turns, each the mean of some steps in a row. Resident: weights and
buffers. Peak: that, and what torch had allocated at most beside it during a step.
"""

import argparse
import gc
import sys
import time
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1] / "tools")]
from command_line import typed  # noqa: E402  (the folders above hold these)
from machine import header  # noqa: E402
from random_flux import start_host  # noqa: E402
from step_models import FORMATS, OURS  # noqa: E402
from step_row import WORDS, Step, compile_blocks, distance  # noqa: E402
from step_subject import Subject  # noqa: E402

ROWS = "bf16,bf16+cudnn,fp8,int8,int8-convrot,w4a4-convrot,gguf-q4,nf4,w4a8,w4a8+flash,w4a8+graph,w4a8+lora,w4a4"
GIB = 2**30


class Bench:
    """All rows, and the tables of them."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.notes, self.started = options, [], time.perf_counter()
        self.steps: list[Step] = []
        models: dict = {}
        self.subject = Subject(options)
        for row in options.rows:
            if self.late():
                self.notes.append(f"{row}: left out, {options.seconds:g} s had passed")
                continue
            try:
                self.steps.append(Step(row, self.subject, models))
            except Exception as error:
                if row.split("+")[0] in OURS:
                    raise
                self.notes.append(f"{row}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        gc.collect()

    def late(self) -> bool:
        """Whether nothing new is to begin."""
        return bool(self.options.seconds) and time.perf_counter() - self.started > self.options.seconds

    def table(self, pixels: int, batch: int) -> None:
        """Rows of one size, timed in turns; printed."""
        ready, results = [], {}
        for step in self.steps:
            try:
                step.set_size(pixels, batch)
                results[step.row] = step.run()
                if "compile" in step.changes:
                    self.notes.append(compile_blocks(step))
                for _ in range(3):  # kernels, recordings, graphs
                    results[step.row] = step.run()
                ready.append(step)
            except Exception as error:
                if step.format in OURS and "compile" not in step.changes:
                    raise
                self.notes.append(f"{step.row}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        for step in ready:
            if not bool(results[step.row].isfinite().all()):
                raise SystemExit(f"{step.row}: the result is not finite.")
        for _ in range(self.options.turns):
            for step in ready:
                if not (self.late() and step.times):
                    step.block()
        video = f" x {self.options.frames} frames of the latent" if self.subject.is_video else ""
        tokens = f": {ready[0].tokens()} tokens" if ready else ""
        size = f"{self.options.model}, {pixels} x {pixels}{video}, batch {batch}{tokens}"
        print(f"| {size} | ms | | turns | resident GiB | peak GiB | differs |")
        print("|---" * 7 + "|")
        base = median(ready[0].times) if ready else 0.0
        for step in ready:
            time_, peak = median(step.times), step.peak()
            plain = results.get(step.format)  # the same weights, nothing done to them
            differs = "" if not step.changes or plain is None or "lora" in step.changes else step.row
            cells = [
                step.title,
                f"{time_:.1f}",
                f"{base / time_:.2f}x",
                " ".join(f"{t:.1f}" for t in step.times),
                f"{step.resident / GIB:.2f}",
                f"{peak / GIB:.2f}" if peak else "-",
                f"{distance(results[differs], plain):.1e}" if differs and plain is not None else "",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)
        print(flush=True)

    def images(self, pixels: int) -> None:
        """Whole images, in turns; printed."""
        steps = self.options.image_steps
        for step in self.steps:
            step.times = []
            step.image(pixels, 4)
        for _ in range(2):
            for step in self.steps:
                if not (self.late() and step.times):
                    step.times.append(step.image(pixels, steps))
        print(f"| {pixels} x {pixels}, {steps} steps, from noise to latent | s | |\n|---|---|---|")
        for step in self.steps:
            print(f"| {step.title} | {min(step.times):.2f} | {min(self.steps[0].times) / min(step.times):.2f}x |")
        print(flush=True)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _rows(text: str) -> list[str]:
    for row in text.split(","):
        name, *changes = row.split("+")
        if name not in FORMATS or not set(changes) <= WORDS.keys():
            raise argparse.ArgumentTypeError(
                f"{row}: a row is one of {', '.join(FORMATS)}, followed by any of +{', +'.join(WORDS)}"
            )
    return text.split(",")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=typed(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=_rows, default=ROWS.split(","), help="the first one is what others are compared with"
    )
    parser.add_argument("--pixels", type=_numbers, default=[1024], help="sides of images, as 512,1024,2048")
    parser.add_argument("--batch", type=_numbers, default=[1], help="images at once, as 1,4")
    parser.add_argument("--image", action="store_true", help="also time whole images, for each size")
    parser.add_argument("--image-steps", type=int, default=20)
    parser.add_argument("--model", default="flux1", help="a family of tests/families (default: flux1)")
    parser.add_argument("--blocks", type=int, help="at most so many blocks of each kind (default: all)")
    parser.add_argument("--tiny", action="store_true", help="the tiny model that the tests use")
    parser.add_argument("--frames", type=int, default=9, help="of a video's latent")
    parser.add_argument("--text", type=int, default=512, help="text tokens")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=8, help="steps in a row that one turn takes")
    parser.add_argument("--turns", type=int, default=3, help="how often each row has its turn")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--allocator", choices=("comfyui", "torch"), default="comfyui", help="torch: its own one")
    parser.add_argument("--commit", help="what to print for the commit where git is not (default: ask git)")
    parser.add_argument("--seconds", type=float, default=0, help="begin nothing new after so many seconds")
    options = parser.parse_args(argv)
    if options.blocks is not None and options.blocks < 2:
        parser.error("--blocks: at least 2, since layers to quantize are found by blocks that repeat")
    return options


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.image and options.model != "flux1":
        sys.stderr.write("--image draws with flux1 only.\n")
        return 2
    # the attention that the host takes on NVIDIA; its own one for the CPU asks how much memory is free at each call
    flags = ["--use-pytorch-cross-attention", *(["--cpu"] if options.device == "cpu" else [])]
    start_host("legacy", (*flags, *(["--disable-cuda-malloc"] if options.allocator == "torch" else [])))
    import torch

    if options.device != "cpu" and not torch.cuda.is_available():
        sys.stderr.write("The benchmark needs a GPU that torch can use.\n")
        return 2
    allocator = f", allocator {torch.cuda.get_allocator_backend()}" if options.device != "cpu" else ""
    print(header(options.commit) + allocator + "\n", flush=True)
    bench = Bench(options)
    for pixels in options.pixels:
        for batch in options.batch:
            if bench.late():
                bench.notes.append(f"{pixels} x {pixels}, batch {batch}: left out, {options.seconds:g} s had passed")
            else:
                bench.table(pixels, batch)
        if options.image and not bench.late():
            bench.images(pixels)
    print("\n\n".join(bench.notes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
