"""What to quantize and how, from a MODEL in the graph."""

from dataclasses import asdict
from pathlib import Path

import comfy.model_management
import torch

from ....svdq_core.checkpoint.metadata import pack_version
from ....svdq_core.quantize import QuantSpec
from ....svdq_core.quantize.calibration_file import Calibration
from ....svdq_core.quantize.calibration_fit import FittedCalibration, hash_file
from ....svdq_core.quantize.model_calls import read_calls
from ....svdq_core.quantize.model_plan import ModelPlan
from ....svdq_core.quantize.overrides import Overrides
from ....svdq_core.quantize.refine_file import RunsOf
from ....svdq_core.quantize.to_file import AUTO, QuantizeJob
from ..model.dense_weights import DenseWeights, compute_device, plain_extras
from ..model.model_hash import patches_hash, weights_hash
from .layer_progress import LayerProgress
from .plan_patcher import HostPlan, plan_patcher


def fit_calibration(weights: DenseWeights, path: Path) -> FittedCalibration:
    """The recorded inputs in a file that serve this model.

    Raises:
        CheckpointError: it is no calibration file. SVDQuantError: it was recorded on another model.
    """
    found = plan_patcher(weights.patcher)
    return FittedCalibration(Calibration(path), found.plan, found.architecture.name, weights_hash(weights.patcher))


def make_job(
    found: HostPlan,
    weights: DenseWeights,
    target: Path,
    *,
    spec: QuantSpec,
    overrides: Overrides,
    calibration: FittedCalibration | None,
    form: str = AUTO,
) -> QuantizeJob:
    """Everything checked that can be checked before the work.

    Args:
        found: what its layers become.
        weights: of the full-precision MODEL; its patches are baked in.
        calibration: recorded inputs, or None.
        form: of the file, as QuantizeJob.

    Raises:
        SVDQuantError: a pattern matches no layer.
    """
    patcher = weights.patcher
    overrides.check(found.plan.names)
    source, patches = weights_hash(patcher), patches_hash(patcher)
    recorded = "none"
    if calibration is not None:
        recorded = f"{calibration.file.path.name} sha256 {hash_file(calibration.file.path)}"
    device = compute_device(patcher)
    method = ", ".join(f"{key} {str(value).removeprefix('torch.')}" for key, value in asdict(spec).items())
    made_with = f"torch {torch.__version__}, {_device_name(device)}"
    metadata = {
        "svdquant_source_hash": source,
        "svdquant_method": method,
        "svdquant_calibration": recorded,
        "svdquant_baked_patches": f"{len(weights.patched)} weights, {patches}" if patches else "none",
        "svdquant_made_with": made_with,
    }
    settings = (form, source, patches, method, recorded.rpartition(" ")[2], str(overrides), pack_version(), made_with)
    return QuantizeJob(
        architecture=found.architecture,
        plan=found.plan,
        weights=weights,
        names=weights.names,
        spec=spec,
        device=device,
        target=target,
        fingerprint="; ".join(settings),
        metadata=metadata,
        calibration=calibration,
        inputs=found.inputs_of(patcher.model, spec.seed, device),
        overrides=overrides,
        extras=plain_extras(patcher.model),
        poll=LayerProgress.poll,
        make_room=make_room,
        form=form,
        verify=(lambda: None) if calibration is None else calibration.file.check_unchanged,
    )


def runs_of(found: HostPlan, patcher, job: QuantizeJob, recording: Path) -> RunsOf:
    """The forwards that a job is refined in.

    Args:
        recording: a calibration file that holds calls of the whole model.

    Raises:
        CheckpointError: the file is damaged. SVDQuantError: it holds no calls.
    """
    return found.runs_of(patcher.model, read_calls(recording), job.device, LayerProgress.poll)


def layer_costs(plan: ModelPlan) -> dict[str, float]:
    """Layer -> how long it takes, in any unit, in the order of the run."""
    return {layer.name: layer.weights * (0.1 if layer.is_modulation else 1.0) for layer in plan.quantized}


def reserve_room(patcher, plan: ModelPlan, spec: QuantSpec) -> None:
    """Ask ComfyUI for the memory that the largest layer takes; it unloads models where it must."""
    rows, columns = max(plan.shapes.values(), key=lambda shape: shape[0] * shape[1])
    # float32: the weight and its temporaries; with GPTQ a handful of Hessian-sized matrices
    nbytes = 4 * (12 * rows * columns + (8 * columns * columns if spec.method == "best" else 0))
    comfy.model_management.free_memory(nbytes, compute_device(patcher))


def make_room() -> None:
    """Unload every model of the host."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
