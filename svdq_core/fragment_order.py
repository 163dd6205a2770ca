"""INT4 codes in the order in which the tensor cores of RTX 30, RTX 40 and A100 read them, from loading on.

Permuting them in each call moves every weight twice more: 12 GB in a step of FLUX.1, 12 ms of an RTX 4090's memory. A
part whose first path in w4a4 is the native one is laid out once, when the model is loaded; the bytes are as many. The
shape says which order it is: (N, K//2) int8 in rows, (K//64, N//16, 32, 4) int32 in fragments. Whoever reads a blob
gets rows, unless it asks for what lies there, which only the layer's own call does.
"""

import torch

from ..kernels.paths.layer_paths import keeps_fragments
from ..kernels.step.fragments import are_fragments, from_weight_fragments, to_weight_fragments
from .arena import Arena
from .layer import Part, with_tensors


def lay_out(part: Part, device: torch.device, arena: Arena | None = None) -> Part:
    """The part in the order in which a device's kernels read it in w4a4; the part itself where that is rows.

    Args:
        device: what will run it; it permutes, and the result lies where the part lies.
        arena: memory of the part's layer; codes that lie in it stay in their place.

    Raises:
        torch.cuda.OutOfMemoryError: the device has no room for the codes, twice.
    """
    qweight = part["qweight"]
    if are_fragments(qweight) or not keeps_fragments(part.scheme, part.tensors, part.act_unsigned, device):
        return part
    ordered = to_weight_fragments(qweight.contiguous().to(device)).to(qweight.device)
    if arena is not None and arena.holds(qweight):
        ordered = qweight.view(torch.int32).view(ordered.shape).copy_(ordered)
    return with_tensors(part, qweight=ordered)


def as_rows(part: Part) -> Part:
    """The part with its codes in rows: a copy of them where they were in fragments."""
    qweight = part.get("qweight")
    if qweight is None or not are_fragments(qweight):
        return part
    return with_tensors(part, qweight=from_weight_fragments(qweight))
