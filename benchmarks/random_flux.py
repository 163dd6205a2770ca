"""A FLUX.1 of random weights in the real host, made on the device that will run it, and how the host is started.

names and shapes     linears(), plain_linears(), norms()
SVDQuant layers      Draw: int4 with a low-rank branch, AWQ modulation
the host             start_host()
"""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from svdquant_pack.svdq_core.layer import Part, QuantizedLayer

ROOT = Path(__file__).resolve().parents[1]
HEAD = 128  # channels of an attention head
HIDDEN = 3072  # of FLUX.1
# Linear -> (outputs, inputs) in units of the hidden size
DOUBLE = {"_mod.lin": (6, 1), "_attn.qkv": (3, 1), "_attn.proj": (1, 1), "_mlp.0": (4, 1), "_mlp.2": (1, 4)}
SINGLE = {"modulation.lin": (3, 1), "linear1": (7, 1), "linear2": (1, 5)}


def start_host(mode: str, arguments: tuple[str, ...] = ()) -> None:
    """What the host's main.py does before and after it imports torch.

    Args:
        mode: "dynamic", as ComfyUI starts on NVIDIA, or "legacy" (--disable-dynamic-vram).
        arguments: of the host's command line, beside that.
    """
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools"), os.environ["COMFYUI_PATH"]]
    sys.argv[1:] = [*arguments, *([] if mode == "dynamic" else ["--disable-dynamic-vram"])]
    import comfy.options

    comfy.options.enable_args_parsing()
    import cuda_malloc  # noqa: F401  before torch, whose allocator it chooses
    from comfyui_source import write_stubs

    stubs = tempfile.mkdtemp(prefix="svdquant-stubs-")
    atexit.register(shutil.rmtree, stubs, ignore_errors=True)
    sys.path.append(str(write_stubs(Path(stubs))))  # of what the host imports and no model here uses
    if mode == "dynamic":
        import dynamic_vram

        dynamic_vram.before_torch()
        dynamic_vram.after_torch()

    nodes = ModuleType("svdquant_pack.nodes")  # the seam without the node classes, which need the whole host
    nodes.__path__ = [str(ROOT / "nodes")]
    sys.modules["svdquant_pack.nodes"] = nodes
    logging.getLogger().setLevel(logging.WARNING)


def linears(depth: int, singles: int, hidden: int = HIDDEN) -> dict[str, tuple[int, int]]:
    """Layer -> (outputs, inputs)."""
    named = {f"double_blocks.{i}.{s}{n}": k for i in range(depth) for s in ("img", "txt") for n, k in DOUBLE.items()}
    named |= {f"single_blocks.{i}.{n}": k for i in range(singles) for n, k in SINGLE.items()}
    return {name: (rows * hidden, columns * hidden) for name, (rows, columns) in named.items()}


def plain_linears(hidden: int = HIDDEN) -> dict[str, tuple[int, int]]:
    """Layer that is not quantized -> (outputs, inputs)."""
    return {
        "img_in": (hidden, 64),
        "txt_in": (hidden, 4096),
        "time_in.in_layer": (hidden, 256),
        "time_in.out_layer": (hidden, hidden),
        "vector_in.in_layer": (hidden, 768),
        "vector_in.out_layer": (hidden, hidden),
        "guidance_in.in_layer": (hidden, 256),
        "guidance_in.out_layer": (hidden, hidden),
        "final_layer.linear": (64, hidden),
        "final_layer.adaLN_modulation.1": (2 * hidden, hidden),
    }


def norms(depth: int, singles: int) -> list[str]:
    """Weights of the attention's norms, HEAD values each."""
    found = [f"double_blocks.{i}.{s}_attn.norm" for i in range(depth) for s in ("img", "txt")]
    found += [f"single_blocks.{i}.norm" for i in range(singles)]
    return [f"{name}.{which}_norm.weight" for name in found for which in ("query", "key")]


class Draw:
    """Random tensors on one device.

    Args:
        device: where they are made. rank: of the low-rank branches.
    """

    def __init__(self, device: str, rank: int = 32, seed: int = 0):
        import torch

        self.device, self.rank, self.generator = device, rank, torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> "torch.Tensor":
        """bfloat16 of mean 0."""
        import torch

        return (torch.randn(shape, generator=self.generator, device=self.device) * scale).bfloat16()

    def codes(self, n: int, k: int) -> "torch.Tensor":
        """(n, k / 2) int8: two random 4-bit codes in each."""
        import torch

        return torch.randint(-128, 128, (n, k // 2), generator=self.generator, device=self.device, dtype=torch.int8)

    def part(self, rows: tuple[int, int], columns: tuple[int, int], unsigned: bool = False) -> "Part":
        """An int4 part."""
        import torch

        from svdquant_pack.svdq_core.layer import Part

        n, k = rows[1] - rows[0], columns[1] - columns[0]
        scales = torch.rand(k // 64, n, generator=self.generator, device=self.device) * 0.2 + 0.9
        tensors = {
            "qweight": self.codes(n, k),
            "wscales": (scales * k**-0.5 / 6).bfloat16(),
            "smooth_factor": self.normal(k).abs() + 0.5,
            "proj_down": self.normal(k, self.rank, scale=k**-0.5),
            "proj_up": self.normal(n, self.rank, scale=0.05),
        }
        return Part("int4", rows, columns, unsigned, tensors)

    def awq(self, n: int, k: int) -> "Part":
        """A modulation layer's part."""
        import torch

        from svdquant_pack.svdq_core.layer import Part

        scales = torch.full((k // 64, n), k**-0.5 / 20, device=self.device).bfloat16()
        tensors = {"qweight": self.codes(n, k), "wscales": scales, "wzeros": -7.5 * scales}
        return Part("awq", (0, n), (0, k), False, tensors)

    def layer(self, name: str, n: int, k: int) -> "QuantizedLayer":
        """An int4 layer of the kind that its name says."""
        from svdquant_pack.svdq_core.layer import QuantizedLayer

        if "mod" in name:
            parts = (self.awq(n, k),)
        elif name.endswith("linear1"):
            parts = self.part((0, 3 * k), (0, k)), self.part((3 * k, n), (0, k))
            parts[1].tensors["smooth_factor"] = parts[0]["smooth_factor"]  # as in every file that we have
        elif name.endswith("linear2"):
            parts = self.part((0, n), (0, n)), self.part((0, n), (n, k), True)
        else:
            parts = (self.part((0, n), (0, k), name.endswith("mlp.2")),)
        return QuantizedLayer(k, n, parts, self.normal(n, scale=0.02))
