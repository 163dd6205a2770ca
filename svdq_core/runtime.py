"""Which compute mode runs a model, what it keeps with each layer, and how that is said to the user."""

from dataclasses import replace
from functools import partial

import torch

from ..kernels.choose_compute import choose_compute
from ..kernels.gpus import generation, why_no_triton
from ..kernels.ladder import say_once, steps_left_behind
from ..kernels.layer_call import COMPUTE_MODES
from ..kernels.part_weights import find_channel_scales
from ..kernels.tiles import folds_gelu as generation_folds_gelu
from .fragment_order import lay_out
from .layer import Part, QuantizedLayer, with_tensors
from .quantized_model import QuantizedModel
from .stack import as_in_files, join_inputs

COMPUTE_CHOICES = ("auto", *COMPUTE_MODES)


def resolve_compute(choice: str, precision: str, device: torch.device) -> tuple[str, str]:
    """The compute mode behind a user's choice, and the reason in words.

    Args:
        choice: one of COMPUTE_CHOICES. precision: "int4", "nvfp4" or "int8".
    """
    if choice == "auto" or (precision == "int8" and choice != "w4a16"):
        return choose_compute(precision, device)
    return choice, "chosen by the user"


def folds_gelu(device: torch.device, compute: str) -> str | None:
    """Which layer had better compute a GELU between two on a device: "output" of the first, "input" of the second."""
    return generation_folds_gelu(generation(device), compute)


def prefers_cudnn_attention(device: torch.device) -> bool:
    """Whether cuDNN's attention is known to be faster than FlashAttention 2 on a device."""
    return generation(device).cudnn_attention


def kernels_given_up() -> int:
    """How many ways to compute have failed in this process so far; what came next computes the same, in other bits."""
    return steps_left_behind()


def with_derived(layer: QuantizedLayer, compute: str, device: torch.device) -> QuantizedLayer:
    """The layer as the GPU's kernels are fastest with it; as it was read where there are none.

    Parts that share input and smoothing become one, and for w4a8 the layer keeps channel_scales (4 bytes for an output
    channel), which would otherwise be worked out of its weights in every step. For w4a4 codes may be put into another
    order, in place where they lie in the layer's arena. stack.as_in_files undoes all of it.

    Args:
        compute: one of COMPUTE_MODES. device: what will run the layer; its tensors stay where they are.
    """
    if why_no_triton(device) is not None:
        return layer.without_derived()
    layer = join_inputs(as_in_files(layer))
    prepare = {"w4a8": _with_channel_scales, "w4a4": partial(lay_out, arena=layer.arena)}.get(compute)
    if prepare is None:
        return layer
    try:
        return replace(layer, parts=tuple(prepare(part, device) for part in layer.parts))
    except torch.cuda.OutOfMemoryError:
        say_once("No room on %s to prepare the layers for %s; each step will take a little longer.", device, compute)
        return layer


def _with_channel_scales(part: Part, device: torch.device) -> Part:
    if part.scheme not in ("int4", "nvfp4"):
        return part
    names = ("qweight", "wscales", "wtscale", "wcscales")
    there = {name: part[name].to(device) for name in names if name in part.tensors}
    return with_tensors(part, channel_scales=find_channel_scales(there, part.scheme).to(part["qweight"].device))


def describe_model(name: str, model: QuantizedModel, compute: str, reason: str) -> str:
    """One line about a loaded file: what it is, its size, and what runs it."""
    ranks = model.ranks
    rank = (
        "no low-rank branch" if not any(ranks) else "rank " + " to ".join(str(r) for r in sorted({ranks[0], ranks[-1]}))
    )
    return (
        f"{name}: {model.architecture.title}, {model.precision}, {rank}, {len(model.layers)} quantized layers, "
        f"{model.nbytes / 2**30:.2f} GiB; compute {compute} ({reason})"
    )
