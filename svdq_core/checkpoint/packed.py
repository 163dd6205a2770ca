"""Files of packed_write.py and of the host's own save nodes: host names, one packed weight for each layer.

`<layer>.weight` is the blob of blob.py, `<layer>.svdq_layout` its BlobLayout as JSON bytes, the rest ordinary tensors.
"""

import math
from dataclasses import replace

import torch

from ...kernels.format import BLOB_ALIGNMENT
from ..arena import Arena
from ..blob import BlobLayout
from ..errors import CheckpointError
from ..layer import QuantizedLayer
from .container import Checkpoint
from .group_pairs import split_pairs
from .read_plan import Plan, has_bias, host_modules, plain_names, plan_rest
from .recognize import recognize_host

LAYOUT_SUFFIX = ".svdq_layout"
MAX_LAYOUT_BYTES = 65536
PACKED_METADATA = ("svdquant_format", "svdquant_precision", "svdquant_readers")  # what packed_write.py says about it
_DAMAGE = (ValueError, LookupError, TypeError, RuntimeError, AttributeError, ArithmeticError)


def plan_packed(checkpoint: Checkpoint) -> Plan:
    """The plan for a file of packed_write.py, or of the host's ModelSave or CheckpointSave.

    Raises:
        CheckpointError: the model is of an unknown family.
    """
    architecture = recognize_host(checkpoint.name, checkpoint)
    metadata = {key: text for key, text in checkpoint.metadata.items() if key not in PACKED_METADATA}
    plan = Plan(checkpoint, architecture, metadata)
    if architecture.generic:
        for module in host_modules(plan, LAYOUT_SUFFIX):
            plan_linear(plan, module)
        plan_rest(plan)
        return plan
    counts = architecture.count_blocks(checkpoint, "host")
    for host, _ in architecture.linears(counts):
        plan_linear(plan, host)
    for block in architecture.blocks:
        for index in range(counts[block.host]):
            for name in plain_names(plan, block, index):
                _plan_tensor(plan, f"{block.host}.{index}.{name}")
    expected = architecture.expected_tensors(lambda host, source: host in checkpoint)
    for module in architecture.modules:
        if f"{module}.weight" in expected:
            plan_linear(plan, module)
    for name in (n for n in architecture.tensors if n in expected):
        _plan_tensor(plan, name)
    return plan


def _plan_tensor(plan: Plan, name: str) -> None:
    """Append a tensor that published files leave in 16 bits, or the packed layer whose weight or bias it is."""
    module, _, end = name.rpartition(".")
    if module + LAYOUT_SUFFIX not in plan.checkpoint:
        plan.add_plain(name, [name])
    elif end == "weight":
        plan_linear(plan, module)


def plan_linear(plan: Plan, host: str) -> None:
    """Append a Linear, packed or plain."""
    described = plan.architecture.find_linear(host) is not None or host in plan.architecture.modules
    biased = has_bias(plan, host) if described else f"{host}.bias" in plan.checkpoint
    names = [f"{host}.weight"] + ([f"{host}.bias"] if biased else [])
    if host + LAYOUT_SUFFIX in plan.checkpoint:
        plan.want(*names, host + LAYOUT_SUFFIX)
        plan.add(host, host, lambda: _read_layer(plan.checkpoint, host))
        return
    for name in names:
        plan.add_plain(name, [name])


def _read_layer(checkpoint: Checkpoint, name: str) -> QuantizedLayer:
    where = f"{checkpoint.name}: {name}"
    blob, text = checkpoint[f"{name}.weight"], checkpoint[name + LAYOUT_SUFFIX]
    if text.dtype != torch.uint8 or text.ndim != 1 or text.numel() > MAX_LAYOUT_BYTES or blob.dtype != torch.uint8:
        raise CheckpointError(f"{where}: weight or layout are no rows of bytes. The file is damaged.")
    try:
        layout = BlobLayout.from_json(text.numpy().tobytes().decode())
        _check_places(layout, blob.numel())
        layer = split_pairs(layout.read(blob, checkpoint.get(f"{name}.bias")))
        layer.check(where)
        layer = replace(layer, arena=Arena.holding(blob))
    except _DAMAGE as error:
        raise CheckpointError(f"{where}: its layout does not fit its weight ({error}). The file is damaged.") from error
    return layer


def _check_places(layout: BlobLayout, nbytes: int) -> None:
    """Raise ValueError where slices are no sizes, or do not end with the blob."""
    end = 0
    for part in layout.parts:
        if part.pieces:
            raise ValueError("parts joined in memory, which no file holds")
        for name, place in part.slices.items():
            sizes = (place.offset, *place.shape, *part.rows, *part.columns)
            if not all(type(size) is int and size >= 0 for size in sizes) or place.offset % BLOB_ALIGNMENT:
                raise ValueError(f"{name} at {place.offset} of shape {place.shape}")
            stop = place.offset + math.prod(place.shape) * getattr(torch, place.dtype).itemsize
            end = max(end, stop + -stop % BLOB_ALIGNMENT)
    if end != nbytes:
        raise ValueError(f"{end} bytes described, {nbytes} there")
