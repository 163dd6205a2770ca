"""When a forward may be replayed as a CUDA graph: nothing in it may depend on what Python does from step to step."""

import os
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from ..attention import OVERRIDE, attend

SWITCH = "SVDQUANT_GRAPHS"  # environment: 0 never, 1 also where launching is not what takes the time
KEY = "svdquant_graphs"  # of our wrapper
# What the host's samplers write into transformer_options in each step. Left out of a graph: the whole schedule and the
# ids of the conditionings. A model that wants them fails while it is captured, and goes on without a graph.
LEFT_OUT = ("sample_sigmas", "uuids", "callbacks", "wrappers", OVERRIDE)
WITH_TENSORS = ("sigmas", "cond_or_uncond", "rope_options")
EMPTY = ("patches", "patches_replace")  # functions of other nodes: they may keep count of steps
LARGEST_LATENT = 128 * 128  # a batch of 1024 x 1024 pixels at 8 pixels a latent: more is not bound by launches
DEVICES = ("cuda",)
# Of torch; ComfyUI takes the second on NVIDIA. Whole forwards were bit-equal under both on an H200: DECISIONS 86.
ALLOCATORS = ("native", "cudaMallocAsync")


def why_not(model: Any, x: Tensor, control: Any, options: dict) -> str | None:
    """Why a call of a model has to run as usual, in words; None if it may become a graph.

    Args:
        model: the host's BaseModel. options: its transformer_options.
    """
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    if x.device.type not in DEVICES or torch.is_grad_enabled():
        return "only inference on a GPU"
    if os.environ.get(SWITCH) != "1" and allocator(x.device) not in ALLOCATORS:
        return f"the allocator is {allocator(x.device)}"
    if torch.compiler.is_compiling() or is_capturing(x.device):
        return "it is being compiled or captured already"
    if x.shape[0] * x.shape[-1] * x.shape[-2] > LARGEST_LATENT:
        return "the image is large"
    if control is not None:
        return "a ControlNet adds to it in each step"
    return _why_not_options(options) or _why_not_patcher(model)


def allocator(device: torch.device) -> str:
    """How torch takes memory on a device."""
    return torch.cuda.get_allocator_backend() if device.type == "cuda" else ALLOCATORS[0]


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _why_not_options(options: dict) -> str | None:
    for name in EMPTY:
        if any((options.get(name) or {}).values()):
            return f"another node's {name}"
    if options.get(OVERRIDE, attend) is not attend:
        return "another node's attention"
    kinds = comfy.patcher_extension.WrappersMP
    for kind in (kinds.APPLY_MODEL, kinds.DIFFUSION_MODEL):
        others = [key for key, found in options.get("wrappers", {}).get(kind, {}).items() if found and key != KEY]
        if others:
            return f"a wrapper of another node ({', '.join(map(str, others))})"
    unknown = options.keys() - {*LEFT_OUT, *WITH_TENSORS, *EMPTY}
    return f"options of another node ({', '.join(sorted(map(str, unknown)))})" if unknown else None


def _why_not_patcher(model: Any) -> str | None:
    patcher = model.current_patcher
    if patcher is None:
        return "the model is not loaded"
    if patcher.current_hooks is not None or patcher.forced_hooks is not None or model.svdquant_hooked:
        return "hooks change its weights"
    if any(patcher.injections.values()):
        return "another node injects into it"
    replaced = [name for name in vars(model.diffusion_model) if name.startswith("forward")]
    return f"its {replaced[0]} was replaced" if replaced else None


def for_graph(options: dict) -> dict:
    """transformer_options as a graph sees them; our own attention stands in them as a flag."""
    kept = {name: options[name] for name in (*WITH_TENSORS, *EMPTY) if name in options}
    return kept | {OVERRIDE: OVERRIDE in options}


def for_model(options: dict) -> dict:
    """for_graph() undone."""
    kept = {name: value for name, value in options.items() if name != OVERRIDE}
    return kept | ({OVERRIDE: attend} if options[OVERRIDE] else {})
