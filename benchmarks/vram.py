"""Memory states of a FLUX.1-dev-size SVDQuant model on a CUDA GPU, in the real host: bits, time and memory of each.

    COMFYUI_PATH=... python benchmarks/vram.py --mode dynamic --folder /tmp/vram     as ComfyUI starts on NVIDIA
    COMFYUI_PATH=... python benchmarks/vram.py --mode legacy --folder /tmp/vram      --disable-dynamic-vram

Weights and four LoRAs of rank 32 are random and made on the GPU; the files stay in the folder. A budget of 8, 12 or
16 GB is what is left after the rest of the card has been taken. Prints one line for each state; exits with 1 if one
differs.
"""

import argparse
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from random_flux import HEAD, Draw, linears, norms, plain_linears, start_host


def write_model(path: Path, depth: int, singles: int) -> None:
    """A file as the host's ModelSave writes it, with random int4 layers of rank 32."""
    import torch
    from safetensors.torch import save_file

    from svdquant_pack.nodes.host.model.quantized_linear import LAYOUT_KEY, layout_to_tensor
    from svdquant_pack.svdq_core.blob import to_blob

    draw, tensors = Draw("cuda"), {}
    for name, size in linears(depth, singles).items():
        layer = draw.layer(name, *size)
        blob, layout = to_blob(layer)
        tensors[f"{name}.weight"], tensors[f"{name}.{LAYOUT_KEY}"] = blob.cpu(), layout_to_tensor(layout)
        tensors[f"{name}.bias"] = layer.bias.cpu()
    for name, (n, k) in plain_linears().items():
        tensors[f"{name}.weight"] = draw.normal(n, k, scale=k**-0.5).cpu()
        tensors[f"{name}.bias"] = draw.normal(n, scale=0.02).cpu()
    tensors |= {name: torch.ones(HEAD).bfloat16() for name in norms(depth, singles)}
    save_file({f"model.diffusion_model.{k}": t for k, t in tensors.items()}, path)


def write_loras(folder: Path, depth: int, singles: int) -> list[Path]:
    import torch
    from safetensors.torch import save_file

    paths = []
    for i in range(4):
        g = torch.Generator("cuda").manual_seed(100 + i)
        lora = {}
        for name, (n, k) in linears(depth, singles).items():
            for end, shape in (("A", (32, k)), ("B", (n, 32))):
                tensor = torch.randn(shape, generator=g, device="cuda") * (k**-0.5 if end == "A" else 0.1)
                lora[f"diffusion_model.{name}.lora_{end}.weight"] = tensor.bfloat16().cpu()
        paths.append(folder / f"lora-{i}.safetensors")
        save_file(lora, paths[-1])
    return paths


class Peak:
    """The least memory that was free on the card while it ran; everything on the card counts, not torch alone."""

    def __enter__(self):
        import torch

        self._stop, self.least = threading.Event(), torch.cuda.mem_get_info()[0]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        import torch

        while not self._stop.wait(0.002):
            self.least = min(self.least, torch.cuda.mem_get_info()[0])

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


class Sampling:
    """Samples and says how long, how much, and whether it is the expected picture."""

    def __init__(self, pixels: int, steps: int):
        import torch

        g = torch.Generator().manual_seed(1)
        self.steps, shape = steps, (1, 16, pixels // 8, pixels // 8)
        self.noise, self.latent = torch.randn(shape, generator=g), torch.zeros(shape)
        pooled = {"pooled_output": torch.randn(1, 768, generator=g), "guidance": 3.5}
        self.conditioning = [[torch.randn(1, 512, 4096, generator=g), pooled]]
        self.free_of_all = torch.cuda.mem_get_info()[0]
        self.failures = 0

    def __call__(self, title: str, model, expected=None):
        import comfy.sample
        import torch

        marks = []

        def callback(*_):
            torch.cuda.synchronize()
            marks.append(time.perf_counter())

        before = torch.cuda.mem_get_info()[0] if self.free_of_all is None else self.free_of_all
        with Peak() as peak, torch.inference_mode():
            torch.cuda.synchronize()
            start = time.perf_counter()
            given = self.steps, 1.0, "euler", "simple", self.conditioning, self.conditioning, self.latent
            out = comfy.sample.sample(model, self.noise, *given, callback=callback, disable_pbar=True, seed=0).clone()
        rest = [b - a for a, b in pairwise(marks)]
        self.first, self.later = 1e3 * (marks[0] - start), 1e3 * min(rest)
        same = "" if expected is None else "same bits" if torch.equal(out, expected) else "DIFFERS"
        if expected is not None and same == "DIFFERS":
            self.failures += 1
            same += f" by {float((out - expected).norm() / expected.norm()):.2e}"
        if not out.isfinite().all():
            self.failures, same = self.failures + 1, same + " NOT FINITE"
        size, loaded = model.model_size() / 2**30, model.loaded_size() / 2**30
        print(
            f"{title:44s} first step {self.first:7.0f} ms, then {self.later:6.1f} ms; peak "
            f"{(before - peak.least) / 2**30:5.2f} GiB, model {size:5.2f}, believed loaded {loaded:5.2f}; {same}",
            flush=True,
        )
        return out


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory states at FLUX.1-dev size.")
    parser.add_argument("--mode", choices=("dynamic", "legacy"), default="dynamic")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=19)
    parser.add_argument("--singles", type=int, default=38)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--compute", default="auto")
    parser.add_argument("--turns", type=int, default=5, help="how often a strength is changed and changed back")
    parser.add_argument("--budgets", default="16,12,8", help="GB left on the card")
    args = parser.parse_args()
    start_host(args.mode)

    import comfy.model_management
    import comfy.sd
    import comfy.utils
    import torch

    from svdquant_pack.nodes.host.model.build import load_model_with_status

    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / f"flux-{args.depth}-{args.singles}.safetensors"
    if not path.exists():
        write_model(path, args.depth, args.singles)
        write_loras(args.folder, args.depth, args.singles)
        torch.cuda.empty_cache()
    files = [comfy.utils.load_torch_file(str(args.folder / f"lora-{i}.safetensors")) for i in range(4)]
    run = Sampling(args.pixels, 4)
    with torch.inference_mode():
        model, status = load_model_with_status(str(path), args.compute)
    print(args.mode, torch.__version__, torch.cuda.get_device_name(), type(model).__name__, status, flush=True)

    def add(base, index: int, strength: float):
        return comfy.sd.load_lora_for_models(base, None, files[index], strength, 0)[0]

    run("warm-up", model)
    plain = run("no LoRA", model)
    run("again", model, plain)
    four = model
    for i in range(4):
        four = add(four, i, 0.25)
    picture = run("4 LoRAs of rank 32, first time", four)
    run("again", four, picture)
    weaker = add(add(add(add(model, 0, 0.1), 1, 0.25), 2, 0.25), 3, 0.25)
    run("one strength changed", weaker)
    run("changed back", four, picture)
    times = []
    turn = ("unchanged", four, picture), ("changed", weaker, None), ("back", four, picture)
    for _ in range(args.turns):  # the clock of one first step is not to be trusted
        for title, patched, wanted in turn:
            run(f"strength {title}", patched, wanted)
            times.append((run.first, run.later))
    unchanged, changed, back = (tuple(median(t[i] for t in times[j::3]) for i in (0, 1)) for j in range(3))
    for title, (first, later) in (("another strength", changed), ("the former again", back)):
        print(
            f"{title} costs {first - unchanged[0]:.0f} ms in the first step, {later - unchanged[1]:.0f} in later ones"
        )
    three = add(add(add(model, 0, 0.25), 1, 0.25), 3, 0.25)
    less = run("one switched off", three)
    run("switched on again", four, picture)
    run("off again", three, less)
    run("+s and -s of one", add(add(three, 2, 0.4), 2, -0.4), less)
    run("no LoRA", model, plain)
    for budget in (float(gb) for gb in args.budgets.split(",") if gb):
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        free = torch.cuda.mem_get_info()[0]
        ballast = torch.empty(int(free - budget * 1e9), dtype=torch.uint8, device="cuda")
        run.free_of_all = torch.cuda.mem_get_info()[0]
        run(f"{budget:g} GB, no LoRA", model, plain)
        run(f"{budget:g} GB, 4 LoRAs", four, picture)
        run(f"{budget:g} GB, one strength changed and back", weaker)
        run(f"{budget:g} GB, 4 LoRAs", four, picture)
        del ballast
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    run.free_of_all = torch.cuda.mem_get_info()[0]
    run("unloaded and loaded again, 4 LoRAs", four, picture)
    run("no LoRA", model, plain)
    print(f"{run.failures} failures")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
