"""One denoising step of the real host's FLUX.1-dev-size model: BF16 against each mode, eager and under torch.compile.

    COMFYUI_PATH=... python benchmarks/step.py                            a table of times and memory, as Markdown
    COMFYUI_PATH=... python benchmarks/step.py --depth 2 --singles 2      a small model: shows whether it runs
    COMFYUI_PATH=... python benchmarks/step.py --seconds 120              start nothing new after two minutes

Weights are random and made on the GPU, one model at a time. 1024 x 1024 pixels, 512 text tokens, batch 1. Under
torch.compile each transformer block is compiled with fullgraph=True, which fails at a graph break; breaks are counted,
too. Resident: all weights and buffers. Peak: what torch had allocated at most during a step, weights included.
"""

import argparse
import gc
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1] / "tools")]
from command_line import typed  # noqa: E402  (the folders above hold these)
from machine import header  # noqa: E402
from random_flux import HEAD, HIDDEN, Draw, linears, norms, plain_linears, start_host  # noqa: E402

if TYPE_CHECKING:
    import torch

MODES = ("bf16", "w4a8", "w4a4", "w4a16")
GIB = 2**30


class Step:
    """One model, and what a step of it takes.

    Args:
        mode: of MODES. options: the command line.
    """

    def __init__(self, mode: str, options: argparse.Namespace):
        import torch

        self.mode, self.options, self.device = mode, options, torch.device(options.device)
        self.model = _dense_model(options) if mode == "bf16" else _quantized_model(mode, options)
        self.model.requires_grad_(False).eval()
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self.resident = sum(tensor.nbytes for tensor in tensors)
        draw, side = Draw(options.device, seed=1), options.pixels // 8
        self.inputs = {
            "x": draw.normal(1, 16, side, side),
            "timestep": torch.tensor([0.7], device=self.device, dtype=torch.bfloat16),
            "context": draw.normal(1, options.text, 4096),
            "y": draw.normal(1, 768),
            "guidance": torch.tensor([3.5], device=self.device, dtype=torch.bfloat16),
        }

        self.eager = self.run()  # warms up, and is what the compiled model has to come to

    def run(self) -> "torch.Tensor":
        import torch

        with torch.inference_mode():
            return self.model(**self.inputs)

    def compile(self) -> None:
        """Compile every transformer block by itself, as a whole."""
        for block in [*self.model.double_blocks, *self.model.single_blocks]:
            block.compile(fullgraph=True, dynamic=False, backend=self.options.backend)

    def milliseconds(self) -> float:
        """Median of some steps, from call to the end of the work on the device."""
        times = []
        for _ in range(self.options.repeats):
            self._wait()
            start = time.perf_counter()
            self.run()
            self._wait()
            times.append(1e3 * (time.perf_counter() - start))
        return median(times)

    def peak(self) -> int:
        """Bytes that a step allocates at most, weights included; 0 where torch does not count."""
        import torch

        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats()
        self.run()
        self._wait()
        return torch.cuda.max_memory_allocated()

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _empty_model(operations, options: argparse.Namespace):
    import comfy.ldm.flux.model
    import torch

    return comfy.ldm.flux.model.Flux(
        in_channels=16,
        out_channels=16,
        vec_in_dim=768,
        context_in_dim=4096,
        hidden_size=options.hidden,
        mlp_ratio=4.0,
        num_heads=options.hidden // HEAD,
        depth=options.depth,
        depth_single_blocks=options.singles,
        axes_dim=[16, 56, 56],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=True,
        txt_ids_dims=[],
        dtype=torch.bfloat16,
        device=options.device,
        operations=operations,
    )


def _dense_model(options: argparse.Namespace):
    import comfy.ops
    import torch

    model, draw = _empty_model(comfy.ops.disable_weight_init, options), Draw(options.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(draw.normal(*parameter.shape, scale=parameter.shape[1] ** -0.5))
            else:
                parameter.fill_(1.0) if "norm" in name else parameter.copy_(draw.normal(*parameter.shape, scale=0.02))
    return model


def _quantized_model(mode: str, options: argparse.Namespace):
    import torch

    from svdquant_pack.nodes.host.model.fold import fold_gelus, speed_up_gelus, wants_folding
    from svdquant_pack.nodes.host.model.quantized_linear import LAYOUT_KEY, layout_to_tensor, operations
    from svdquant_pack.svdq_core.blob import to_blob
    from svdquant_pack.svdq_core.runtime import folds_gelu, with_derived

    device, draw, state = torch.device(options.device), Draw(options.device, options.rank), {}
    model = _empty_model(operations(mode), options)
    for name, size in linears(options.depth, options.singles, options.hidden).items():
        layer = with_derived(draw.layer(name, *size), mode, device)
        blob, layout = to_blob(layer)
        state |= {f"{name}.weight": blob, f"{name}.{LAYOUT_KEY}": layout_to_tensor(layout), f"{name}.bias": layer.bias}
    for name, (n, k) in plain_linears(options.hidden).items():
        state[f"{name}.weight"], state[f"{name}.bias"] = draw.normal(n, k, scale=k**-0.5), draw.normal(n, scale=0.02)
    ones = {name: torch.ones(HEAD, device=device).bfloat16() for name in norms(options.depth, options.singles)}
    missing, unexpected = model.load_state_dict(state | ones, strict=False, assign=True)
    layouts = {f"{name}.{LAYOUT_KEY}" for name in linears(options.depth, options.singles, options.hidden)}
    if missing or set(unexpected) - layouts:
        raise SystemExit(f"The host's model has changed: {missing[:3]} missing, {unexpected[:3]} unexpected.")
    where = wants_folding(folds_gelu(device, mode))
    if where:
        fold_gelus(model, where)
    speed_up_gelus(model)
    return model


def _measure_compiled(step: Step) -> tuple[float, str]:
    """Milliseconds, and what compiling was like."""
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(torch._dynamo.config, name):  # each torch has two of the four
            setattr(torch._dynamo.config, name, 4096)
    start = time.perf_counter()
    step.compile()
    before, after = step.eager, step.run()
    error = float((after.float() - before.float()).norm() / before.float().norm())
    seconds = time.perf_counter() - start
    breaks = sum(counters["graph_break"].values())
    blocks = len(step.model.double_blocks) + len(step.model.single_blocks)
    words = (
        f"{step.mode}: {counters['stats']['unique_graphs']} graphs for {blocks} blocks in {seconds:.0f} s, "
        f"{breaks} graph breaks, {error:.1e} from eager"
    )
    return step.milliseconds(), words


def measure(options: argparse.Namespace) -> list[str]:
    """Markdown rows, printed as they come, and notes."""
    import torch

    started, notes, base = time.perf_counter(), [], {}
    tokens = (options.pixels // 16) ** 2 + options.text
    print(f"| one step, {tokens} tokens | eager ms | | torch.compile ms | | resident GiB | peak GiB |", flush=True)
    print("|---" * 7 + "|", flush=True)

    def late() -> bool:
        return bool(options.seconds) and time.perf_counter() - started > options.seconds

    for mode in options.modes.split(","):
        if late():
            notes.append(f"{mode}: left out, {options.seconds:g} s had passed")
            continue
        step = Step(mode, options)
        if not bool(step.eager.isfinite().all()):
            raise SystemExit(f"{mode}: the result is not finite.")
        step.run()
        times, peak = {"eager": step.milliseconds()}, step.peak()
        if not options.eager_only and not late():
            try:
                times["compiled"], words = _measure_compiled(step)
                notes.append(words)
            except Exception as error:  # noqa: BLE001  (the eager row stands; what failed is said)
                notes.append(f"{mode}: torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}")
        base = base or times
        cells = []
        for kind in ("eager", "compiled"):
            known = kind in times and kind in base
            cells += [
                f"{times[kind]:.1f}" if kind in times else "-",
                f"{base[kind] / times[kind]:.2f}x" if known else "-",
            ]
        name = "BF16" if mode == "bf16" else f"ours {mode}, rank {options.rank}"
        cells += [f"{step.resident / GIB:.2f}", f"{peak / GIB:.2f}" if peak else "-"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        del step
        torch._dynamo.reset()
        gc.collect()  # a compiled model refers to itself, and would count in the next one's peak
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return notes


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=typed(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modes", default=",".join(MODES), help="the first one is what others are compared with")
    parser.add_argument("--depth", type=int, default=19, help="double blocks (default: 19)")
    parser.add_argument("--singles", type=int, default=38, help="single blocks (default: 38)")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="a multiple of 128 (default: 3072)")
    parser.add_argument("--pixels", type=int, default=1024, help="side of the image")
    parser.add_argument("--text", type=int, default=512, help="text tokens")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument(
        "--repeats", type=int, default=20, help="steps, one after another, that a time is the median of"
    )
    parser.add_argument("--eager-only", action="store_true", help="leave torch.compile out")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--commit", help="what to print for the commit where git is not (default: ask git)")
    parser.add_argument("--seconds", type=float, default=0, help="begin nothing new after so many seconds")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    # the attention that the host takes on NVIDIA; its own one for the CPU asks how much memory is free at each call
    start_host("legacy", ("--use-pytorch-cross-attention", *(["--cpu"] if options.device == "cpu" else [])))
    import torch

    if options.device != "cpu" and not torch.cuda.is_available():
        sys.stderr.write("The benchmark needs a GPU that torch can use.\n")
        return 2
    print(header(options.commit) + "\n", flush=True)
    for note in measure(options):
        print(f"\n{note}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
