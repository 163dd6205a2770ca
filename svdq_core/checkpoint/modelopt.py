"""Reading NVIDIA ModelOpt's NVFP4_SVD: diffusers' modules, each quantized on its own, low-rank branch behind smoothing.

    y = Q(x * pre_quant_scale) W' + B (A (x * pre_quant_scale))

Elsewhere activations are divided by the smoothing and the branch takes them as they are, so the smoothing is turned
over and goes into A. Layers without a branch are NVFP4 all the same. Source: ModelOpt's svdquant exporter.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.format import GROUP_SIZE_NVFP4, RANK_MULTIPLE
from ..errors import CheckpointError
from ..layer import Part, QuantizedLayer
from ..models import BlockMap, LinearMap
from ..pieces import swap_row_halves
from ..values import FLOAT, check_values
from .assemble import combine
from .container import Checkpoint
from .nunchaku_names import NEWER_SUFFIXES, Spelling
from .nunchaku_read import check_counts, finish, plan_outside_blocks, plan_plain, plan_unquantized
from .read_plan import Plan
from .recognize import recognize_source

MARK = ".svdquant_lora_a"
_REQUIRED = ("weight", "weight_scale", "weight_scale_2")
_OPTIONAL = ("bias", "pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b", "input_scale")


def plan_modelopt(checkpoint: Checkpoint) -> Plan:
    """The plan for a file or folder with layers of NVFP4_SVD.

    Raises:
        CheckpointError: the model is of an unknown family, or some of the modules of a Linear are quantized only.
    """
    family = recognize_source(checkpoint.name, checkpoint)
    plan = Plan(checkpoint, family, metadata={})
    counts = family.count_blocks(checkpoint, "source")
    check_counts(plan, counts)
    for block in family.blocks:
        for index in range(counts[block.host]):
            _plan_block(plan, block, index)
    for host, source in family.modules.items():
        if f"{source}.weight_scale" in checkpoint:
            swapped, bias = host in family.swapped_halves, host not in family.without_bias
            linear, layers = LinearMap("", (source,), swapped=swapped, bias=bias), [_want(plan, source)]
            plan.add(host, source, lambda m=linear, s=layers: _read_linear(checkpoint, m, s))
    plan_outside_blocks(plan)
    finish(plan)
    return plan


def _plan_block(plan: Plan, block: BlockMap, index: int) -> None:
    prefix = f"{block.source}.{index}"
    for linear in block.linears:
        modules = [f"{prefix}.{module}" for module in block.alternatives(linear)[0]]
        host = f"{block.host}.{index}.{linear.host}"
        quantized = [f"{module}.weight_scale" in plan.checkpoint for module in modules]
        if all(quantized):
            layers = [_want(plan, module) for module in modules]
            plan.add(host, modules[0], lambda m=linear, s=layers: _read_linear(plan.checkpoint, m, s))
        elif any(quantized):
            raise CheckpointError(
                f"{plan.checkpoint.name}: {' and '.join(modules)} feed one layer of ComfyUI's model, but only some of "
                "them are quantized. Quantize all of them or none."
            )
        else:
            whole = LinearMap(linear.host, tuple(modules), swapped=linear.swapped, bias=linear.bias)
            plan_unquantized(plan, host, whole, modules)
    plan_plain(plan, block, index, Spelling(NEWER_SUFFIXES, plan.architecture.newer_names))


def _want(plan: Plan, module: str) -> tuple[str, dict[str, str]]:
    there = [name for name in _OPTIONAL if f"{module}.{name}" in plan.checkpoint]
    stored = {name: f"{module}.{name}" for name in (*_REQUIRED, *there)}
    plan.want(*stored.values())
    return module, stored


def _read_linear(checkpoint: Checkpoint, linear: LinearMap, layers: list[tuple[str, dict[str, str]]]) -> QuantizedLayer:
    parts = []
    for name, stored in layers:
        tensors = {kind: checkpoint[full] for kind, full in stored.items()}
        part, bias = _read_part(tensors, f"{checkpoint.name}: {name}")
        if linear.swapped:
            swapped = swap_row_halves(QuantizedLayer(part.in_features, part.out_features, (part,), bias))
            if swapped is None:
                raise CheckpointError(f"{checkpoint.name}: {name}: an odd number of rows has no halves.")
            part, bias = swapped.parts[0], swapped.bias
        parts.append((name, part, bias))
    return combine(checkpoint.name, "rows", parts, arena=None, has_bias=linear.bias)


def _read_part(tensors: dict[str, Tensor], where: str) -> tuple[Part, Tensor | None]:
    weight, scales = tensors["weight"], tensors["weight_scale"]
    if weight.dtype != torch.uint8 or weight.ndim != 2 or not weight.numel():
        raise CheckpointError(
            f"{where}.weight is {str(weight.dtype).removeprefix('torch.')} {tuple(weight.shape)}, expected uint8 "
            "(outputs, inputs/2). The file is damaged or of another format."
        )
    rows, columns = weight.shape[0], 2 * weight.shape[1]
    expected = rows, columns // GROUP_SIZE_NVFP4
    if tuple(scales.shape) != expected or scales.dtype != torch.float8_e4m3fn:
        raise CheckpointError(
            f"{where}.weight_scale is {str(scales.dtype).removeprefix('torch.')} {tuple(scales.shape)}, expected "
            f"float8_e4m3fn {expected}. The file is damaged or of another format."
        )
    before = tensors.get("pre_quant_scale", torch.ones(columns))
    check_values(before, FLOAT, f"{where}.pre_quant_scale")
    if tuple(before.shape) != (columns,) or bool((before == 0).any()):
        raise CheckpointError(f"{where}.pre_quant_scale: expected {columns} numbers other than 0. It is damaged.")
    before = before.float()
    down = tensors.get("svdquant_lora_a", torch.zeros(0, columns))
    up = tensors.get("svdquant_lora_b", torch.zeros(rows, 0))
    if down.ndim != 2 or down.shape[1] != columns or tuple(up.shape) != (rows, down.shape[0]):
        raise CheckpointError(
            f"{where}: its low-rank branch has shapes {tuple(down.shape)} and {tuple(up.shape)}, expected (R, "
            f"{columns}) and ({rows}, R). The file is damaged."
        )
    padding = (0, -down.shape[0] % RANK_MULTIPLE)
    found = {
        "qweight": weight.view(torch.int8),
        "wscales": scales.view(torch.uint8).T.contiguous().view(torch.float8_e4m3fn),
        "wtscale": tensors["weight_scale_2"].float().reshape(-1),
        "smooth_factor": 1 / before,
        "proj_down": F.pad((down.float().T * before[:, None]).to(up.dtype), padding),
        "proj_up": F.pad(up, padding),
    }
    part = Part("nvfp4", (0, rows), (0, columns), False, found)
    part.check(where)
    return part, tensors.get("bias")
