"""W4A16 layers in groups of 128: kernels know groups of 64, so two of them share a scale and a zero point.

In this pack's files such a pair is written once, which takes a quarter of a bit off every weight.
"""

from dataclasses import replace

import torch

from ...kernels.format import GROUP_SIZE_AWQ
from ..layer import Part, QuantizedLayer, with_tensors

SHARED = ("wscales", "wzeros")


def pair_groups(layer: QuantizedLayer) -> QuantizedLayer:
    """The layer as files hold it: scales that are the same for every two groups, once."""
    return replace(layer, parts=tuple(_paired(part) for part in layer.parts))


def split_pairs(layer: QuantizedLayer) -> QuantizedLayer:
    """The layer as kernels take it."""
    return replace(layer, parts=tuple(_split(part) for part in layer.parts))


def _paired(part: Part) -> Part:
    if part.scheme != "awq" or part["wscales"].shape[0] % 2:
        return part
    even, odd = ({name: part[name][first::2] for name in SHARED} for first in (0, 1))
    if not all(torch.equal(even[name], odd[name]) for name in SHARED):
        return part
    return with_tensors(part, **{name: tensor.contiguous() for name, tensor in even.items()})


def _split(part: Part) -> Part:
    groups = part.in_features // GROUP_SIZE_AWQ
    if part.scheme != "awq" or any(name not in part.tensors or 2 * len(part[name]) != groups for name in SHARED):
        return part
    return with_tensors(part, **{name: part[name].repeat_interleave(2, dim=0) for name in SHARED})
