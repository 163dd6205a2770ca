"""One row of benchmarks/step.py: a model, what is done to it, and what a step or an image of it takes."""

import os
import time
from typing import TYPE_CHECKING

from step_models import OURS, add_lora, make_model, title
from step_subject import Subject, torch_device

if TYPE_CHECKING:
    import torch

WORDS = {
    "cudnn": "cuDNN attention",
    "flash": "ComfyUI's attention",
    "graph": "one CUDA graph",
    "eager": "no CUDA graph",
    "lora": "LoRA",
    "compile": "torch.compile",
}
OWN_MODEL = ("lora", "compile")  # what changes modules: such a row shares its model with no other


class Step:
    """One row: a MODEL, what is done to it, and what a step of it takes.

    Args:
        row: a format and suffixes, as "w4a8+cudnn". subject: the family and its sizes.
        models: MODELs by format, which rows share; filled as needed.
    """

    def __init__(self, row: str, subject: Subject, models: dict | None = None):
        from svdquant_pack.nodes.host.attention import OVERRIDE, attend, choose_attention
        from svdquant_pack.nodes.host.graphs.forward import Graphs, install_graphs

        self.row, self.subject, self.options = row, subject, subject.options
        self.device = torch_device(self.options)
        self.format, *self.changes = row.split("+")
        models = {} if models is None else models
        if set(self.changes) & set(OWN_MODEL):
            patcher = make_model(self.format, subject)
        else:
            patcher = models.setdefault(self.format, None) or make_model(self.format, subject)
            models[self.format] = patcher
        if "lora" in self.changes:
            patcher = add_lora(patcher, subject)
        self.patcher, self.model = patcher.clone(), patcher.model
        self.model.svdquant_hooked = False
        install_graphs(self.patcher)
        self.graphs, self.switch = Graphs(), None
        if "graph" in self.changes:
            self.switch = "1"
        elif "eager" in self.changes or self.format not in OURS:
            self.switch = "0"
        chosen = self.patcher.model_options["transformer_options"]
        if "cudnn" in self.changes:
            chosen[OVERRIDE] = attend
        elif self.format in OURS and "flash" not in self.changes:
            choose_attention(self.patcher, "auto")
        tensors = [*self.network.parameters(), *self.network.buffers()]
        self.resident = sum(tensor.nbytes for tensor in tensors)
        self.times: list[float] = []
        self.load()

    @property
    def network(self) -> "torch.nn.Module":
        return self.model.diffusion_model

    @property
    def title(self) -> str:
        return ", ".join((title(self.format, self.options), *(WORDS[change] for change in self.changes)))

    def load(self) -> None:
        """Patches onto the layers, as the host does it before it samples."""
        self.patcher.patch_model(device_to=self.device)

    def set_size(self, pixels: int, batch: int) -> None:
        """New inputs; nothing is known about steps of another size."""
        self.call = self.subject.inputs(pixels, batch)
        self.graphs.clear()
        self.times = []

    def tokens(self) -> int:
        """Rows of the largest input that a quantized layer reads in a step."""
        rows = 0

        def count(_module, args: tuple) -> None:
            nonlocal rows
            rows = max(rows, args[0].numel() // args[0].shape[-1])

        layers = [self.network.get_submodule(layer.name) for layer in self.subject.layers]
        handles = [layer.register_forward_pre_hook(count) for layer in layers]
        self.run()
        for handle in handles:
            handle.remove()
        return rows

    def _sampling_options(self) -> dict:
        """transformer_options as the host's samplers write them."""
        sigmas = {"sigmas": self.call["t"], "sample_sigmas": self.call["t"], "cond_or_uncond": [0], "uuids": [0]}
        wrappers = {kind: dict(found) for kind, found in self.patcher.wrappers.items()}
        return {**self.patcher.model_options["transformer_options"], "wrappers": wrappers, "callbacks": {}, **sigmas}

    def run(self) -> "torch.Tensor":
        import torch

        self._take_turn()
        with torch.inference_mode():
            return self.model.apply_model(**self.call, transformer_options=self._sampling_options())

    def _take_turn(self) -> None:
        from svdquant_pack.nodes.host.graphs.rules import SWITCH

        self.model.current_patcher, self.model.svdquant_graphs = self.patcher, self.graphs
        os.environ.pop(SWITCH, None) if self.switch is None else os.environ.__setitem__(SWITCH, self.switch)

    def block(self) -> None:
        """Time some steps in a row."""
        self.run()
        self._wait()
        start = time.perf_counter()
        for _ in range(self.options.repeats):
            self.run()
        self._wait()
        self.times.append(1e3 * (time.perf_counter() - start) / self.options.repeats)

    def image(self, pixels: int, steps: int) -> float:
        """Seconds for a whole image, from noise to latent, in the host's own sampler."""
        import comfy.sample
        import torch

        self._take_turn()
        shape = (1, 16, pixels // 8, pixels // 8)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        size = 1, self.options.text, self.subject.config["context_in_dim"]
        context = torch.randn(size, generator=torch.Generator().manual_seed(1))
        cond = [[context, {"pooled_output": torch.zeros(1, 768), "guidance": 3.5}]]
        self._wait()
        start = time.perf_counter()
        with torch.inference_mode():
            latent = comfy.sample.sample(
                self.patcher, noise, steps, 1.0, "euler", "simple", cond, cond, torch.zeros(shape), disable_pbar=True
            )
        self._wait()
        if not bool(latent.isfinite().all()):
            raise SystemExit(f"{self.row}: the image is not finite.")
        return time.perf_counter() - start

    def peak(self) -> int:
        """Bytes during a step: the weights, and the most beside them; 0 where torch does not count."""
        import torch

        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run()
        self._wait()
        return self.resident + torch.cuda.max_memory_allocated() - before

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()


def compile_blocks(step: Step) -> str:
    """Compile the blocks of a row; what that was like."""
    import torch
    from torch._dynamo.utils import counters

    from svdquant_pack.nodes.host.quantize.trace import find_blocks

    torch._dynamo.reset()
    counters.clear()
    for name in ("recompile_limit", "cache_size_limit", "accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(torch._dynamo.config, name):  # each torch has two of the four
            setattr(torch._dynamo.config, name, 4096)
    before, start = step.run(), time.perf_counter()
    blocks = [step.network.get_submodule(name) for name in find_blocks(step.network)]
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False, backend=step.options.backend)
    error = distance(step.run(), before)
    return (
        f"{step.format}: {counters['stats']['unique_graphs']} graphs for {len(blocks)} blocks in "
        f"{time.perf_counter() - start:.0f} s, {sum(counters['graph_break'].values())} graph breaks, "
        f"{error:.1e} from eager"
    )


def distance(a: "torch.Tensor", b: "torch.Tensor") -> float:
    """||a - b|| / ||b||."""
    return float((a.float() - b.float()).norm() / b.float().norm())
