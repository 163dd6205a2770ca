"""Reading nunchaku's 4-bit T5 (awq-int4-flux.1-t5xxl): AWQ layers with one scale for 128 inputs.

Its codes lie as those of modulation layers do, under another dtype; a group of 128 is two groups of 64 with one scale.
Source: nunchaku's tinychat_utils.py, checked on a file of it.
"""

import torch
from torch import Tensor

from ...kernels.format import GROUP_SIZE_AWQ
from ..errors import CheckpointError
from ..layer import Part, QuantizedLayer
from ..models.t5 import T5
from ..modulation_codes import codes_from_nunchaku
from ..quantized_model import QuantizedModel
from .container import Checkpoint
from .nunchaku_names import NEWER_SUFFIXES, Spelling
from .nunchaku_read import check_counts, plan_plain, plan_unquantized
from .packed import LAYOUT_SUFFIX, plan_linear
from .read_plan import Plan

GROUP = 128
ROWS_MULTIPLE = 8  # scale rows are padded with zeros to a multiple of it
TIED = "encoder.embed_tokens.weight"
TENSORS = ("qweight", "scales", "scaled_zeros")


def is_t5(checkpoint: Checkpoint) -> bool:
    """Whether the quantized layers are those of a 4-bit T5, as nunchaku's tool or ComfyUI's CLIPSave wrote it."""
    if any(name.startswith(T5.blocks[0].host) and name.endswith(f".wi_0{LAYOUT_SUFFIX}") for name in checkpoint):
        return True  # older ones and byT5 have another MLP, and are read as any encoder is
    return {checkpoint.dtype(name) for name in checkpoint if name.endswith(".qweight")} == {"I16"}


def read_text_encoder(checkpoint: Checkpoint) -> QuantizedModel:
    """A 4-bit T5 under ComfyUI's names: every Linear an AWQ layer of groups of 64, without a bias.

    Raises:
        CheckpointError: it is no such file, damaged or incomplete.
    """
    if not is_t5(checkpoint):
        raise CheckpointError(
            f"{checkpoint.name}: no 4-bit T5 text encoder. Choose awq-int4-flux.1-t5xxl.safetensors; load 16-bit and "
            "fp8 text encoders with Load CLIP, and diffusion models with Load Model (SVDQuant)."
        )
    return _plan(checkpoint).read()


def _plan(checkpoint: Checkpoint) -> Plan:
    plan = Plan(checkpoint, T5)
    counts = T5.count_blocks(checkpoint, "host")
    check_counts(plan, counts)
    spelling = Spelling(NEWER_SUFFIXES, {})
    for block in T5.blocks:
        for index in range(counts[block.host]):
            for linear in block.linears:
                host = f"{block.host}.{index}.{linear.host}"
                if host + LAYOUT_SUFFIX in checkpoint:
                    plan_linear(plan, host)
                    plan.ignore_others()  # ComfyUI saves a tokenizer, too
                elif f"{host}.qweight" in checkpoint:
                    plan.want(*(f"{host}.{name}" for name in TENSORS))
                    plan.add(host, host, lambda host=host: _read_layer(checkpoint, host))
                else:
                    plan_unquantized(plan, host, linear, [host])
            plan_plain(plan, block, index, spelling)
    for name in T5.tensors:
        plan.add_plain(name, [name])
    if TIED in checkpoint and "shared.weight" in checkpoint:
        plan.want(TIED)  # and not taken: it is shared.weight once more
    return plan


def _read_layer(checkpoint: Checkpoint, host: str) -> QuantizedLayer:
    qweight, scales, zeros = (checkpoint[f"{host}.{name}"] for name in TENSORS)
    where = f"{checkpoint.name}: {host}"
    if qweight.dtype != torch.int16 or qweight.ndim != 2 or not qweight.numel() or qweight.shape[1] % GROUP_SIZE_AWQ:
        raise CheckpointError(
            f"{where}.qweight is {str(qweight.dtype).removeprefix('torch.')} {tuple(qweight.shape)}, expected int16 "
            f"(outputs/4, inputs) with inputs in multiples of {GROUP_SIZE_AWQ}. The file is damaged."
        )
    rows, columns = qweight.shape[0] * 4, qweight.shape[1]
    tensors = {
        "qweight": codes_from_nunchaku(qweight.contiguous().view(torch.int32)),
        "wscales": _of_groups(scales, rows, columns, f"{where}.scales"),
        "wzeros": _of_groups(zeros, rows, columns, f"{where}.scaled_zeros"),
    }
    part = Part("awq", (0, rows), (0, columns), False, tensors)
    part.check(where)
    return QuantizedLayer(columns, rows, (part,))


def _of_groups(stored: Tensor, rows: int, columns: int, what: str) -> Tensor:
    """(K/128 padded, N) -> (K/64, N)."""
    groups = -(-columns // GROUP)
    most = groups + -groups % ROWS_MULTIPLE
    if stored.ndim != 2 or not groups <= stored.shape[0] <= most or stored.shape[1] != rows:
        raise CheckpointError(
            f"{what} has shape {tuple(stored.shape)}, expected ({groups}, {rows}) or up to ({most}, {rows}). The file "
            "is damaged."
        )
    return stored[:groups].repeat_interleave(GROUP // GROUP_SIZE_AWQ, dim=0)[: columns // GROUP_SIZE_AWQ].contiguous()
