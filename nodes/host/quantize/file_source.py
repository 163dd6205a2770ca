"""A model in a file, opened for quantizing by ComfyUI's own detection: its class is made, its weights stay in the file.

Nothing but small tensors is in memory at once, so a 66 GB model takes what one block of it takes.
"""

import logging

import comfy.model_base
import comfy.model_detection
import comfy.ops
import comfy.utils
import torch
from torch import Tensor

from ....svdq_core.checkpoint.container import Checkpoint
from ....svdq_core.checkpoint.dense_read import DTYPES, DenseModel
from ....svdq_core.checkpoint.dialects import DIALECTS
from ....svdq_core.errors import CheckpointError
from ....svdq_core.quantize.source_model import SourceModel, position_size
from ..model.dense_weights import plain_extras
from .lazy_tensors import Joining, LazyTensor, LazyWeights
from .plan_patcher import plan_host_model
from .replica import NOISE_LIMIT

logger = logging.getLogger("svdquant")

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
QUANTIZED_MARKS = (".comfy_quant", ".scale_weight", "scaled_fp8", ".weight_scale")
NAMED_AT_MOST = 5


class _WithoutMemory(comfy.ops.disable_weight_init):
    """ComfyUI's operations; what has large weights is made without memory."""

    class Linear(comfy.ops.disable_weight_init.Linear):
        def __init__(self, *args, **named):
            super().__init__(*args[:3], **named | {"device": "meta"})

    class Conv2d(comfy.ops.disable_weight_init.Conv2d):
        def __init__(self, *args, **named):
            super().__init__(*args, **named | {"device": "meta"})

    class Conv3d(comfy.ops.disable_weight_init.Conv3d):
        def __init__(self, *args, **named):
            super().__init__(*args, **named | {"device": "meta"})


def open_source(checkpoint: Checkpoint, seed: int, device: torch.device) -> SourceModel:
    """Any file that ComfyUI loads as a diffusion model, in 16 or 32 bits.

    Args:
        seed: of the noise that the model runs on. device: where it runs.

    Raises:
        CheckpointError: it is quantized, incomplete, or ComfyUI does not know it.
        ArchitectureError: it has no repeated blocks, or cannot be run.
    """
    model, weights, ignored = open_model(checkpoint)
    found, extras = plan_host_model(model), plain_extras(model)
    return SourceModel(
        architecture=found.architecture,
        plan=found.plan,
        weights=weights,
        inputs=found.inputs_of(model, seed, device),
        runs=lambda calls: found.runs_of(model, calls, device),
        extras=extras,
        ignored=tuple(name for name in ignored if name not in extras),
        notes=found.notes,
    )


def open_model(checkpoint: Checkpoint) -> tuple[comfy.model_base.BaseModel, LazyWeights, tuple[str, ...]]:
    """ComfyUI's model without its large weights, all weights under its names, and what it has no place for."""
    _refuse_quantized(checkpoint)
    lazy, ignored = host_tensors(checkpoint)
    with torch.inference_mode(False), torch.no_grad():
        prefix = comfy.model_detection.unet_prefix_from_state_dict(lazy)
        lazy = {n.removeprefix(prefix): t for n, t in lazy.items()} if all(n.startswith(prefix) for n in lazy) else lazy
        config = comfy.model_detection.model_config_from_unet(dict(lazy), "", metadata=dict(checkpoint.metadata))
        if config is None:
            with Joining():
                converted = comfy.model_detection.convert_diffusers_mmdit(dict(lazy), "")
            if converted is not None:
                lazy, config = converted, comfy.model_detection.model_config_from_unet(converted, "")
        if config is None:
            raise CheckpointError(
                f"{checkpoint.name}: this ComfyUI knows no diffusion model with these tensors (first: "
                f"{next(iter(lazy), 'none')}). Update ComfyUI, or check that it is a whole diffusion model."
            )
        config.set_inference_dtype(torch.bfloat16, None)
        config.custom_operations = _WithoutMemory
        model = config.get_model(lazy, "", device=torch.device("cpu"))
        loaded = dict(config.process_unet_state_dict(dict(lazy)))
        wanted = model.diffusion_model.state_dict()
        missing = [name for name in wanted if name not in loaded and wanted[name].is_meta]
        if missing:
            raise CheckpointError(
                f"{checkpoint.name}: {len(missing)} missing tensors: {', '.join(missing[:NAMED_AT_MOST])}"
                f"{', ...' if len(missing) > NAMED_AT_MOST else ''}. The file is incomplete, or no "
                f"{type(model).__name__} file."
            )
        weights = LazyWeights({name: tensor for name, tensor in loaded.items() if name in wanted})
        _check_shapes(checkpoint.name, weights, wanted)
        _read_small(model.diffusion_model, weights)
    return model, weights, (*ignored, *(name for name in loaded if name not in wanted))


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    for dialect in DIALECTS:
        if dialect.find_mark(checkpoint):
            raise CheckpointError(
                f"{checkpoint.name}: an SVDQuant model already ({dialect.title}). Quantize the 16-bit model."
            )
    mark = next((name for name in checkpoint if name.endswith(QUANTIZED_MARKS)), None)
    reduced = next((n for n in checkpoint if checkpoint.dtype(n) not in DTYPES and n.endswith("weight")), None)
    if mark or reduced:
        found = mark or f"{reduced} is {checkpoint.dtype(reduced or '')}"
        raise CheckpointError(
            f"{checkpoint.name}: the model is in a reduced precision already ({found}), and quantizing twice loses "
            "quality. Take the 16-bit file."
        )


def host_tensors(checkpoint: Checkpoint) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Under ComfyUI's names, also where a described family has those of diffusers; and what was left out."""
    dense = _described(checkpoint)
    if dense is not None and dense.has_names_of_diffusers:
        lazy = {n: _lazy(dense, n, torch.bfloat16) for n in dense}
        for name, tensor in position_size(dense).items():
            lazy[name] = LazyTensor.of(tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)
        return lazy, tuple(dense.ignored)
    return {n: _lazy(checkpoint, n, TORCH_DTYPES.get(checkpoint.dtype(n), torch.float32)) for n in checkpoint}, ()


def _described(checkpoint: Checkpoint) -> DenseModel | None:
    try:
        return DenseModel(checkpoint)
    except CheckpointError:
        return None


def _lazy(source: DenseModel | Checkpoint, name: str, dtype: torch.dtype) -> LazyTensor:
    return LazyTensor.of(source.shape(name), dtype, lambda: source[name])


def _check_shapes(file: str, weights: LazyWeights, wanted: dict[str, Tensor]) -> None:
    for name in weights:
        found, expected = weights.shape(name), tuple(wanted[name].shape)
        if found != expected:
            raise CheckpointError(f"{file}: {name} has shape {found}, expected {expected}. The file is damaged.")


def _read_small(network: torch.nn.Module, weights: LazyWeights) -> None:
    """Values that may decide how the model runs."""
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in weights and not tensor.is_meta and tensor.numel() <= NOISE_LIMIT:
            tensor.data.copy_(weights[name])
