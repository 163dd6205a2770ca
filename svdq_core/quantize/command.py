"""The command line's `quantize`: a 16-bit model file into an SVDQuant file.

ComfyUI's own model says what is in it where there is a ComfyUI; without one, only described families are known.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..checkpoint.container import Checkpoint
from ..checkpoint.metadata import pack_version
from ..checkpoint.save import writing
from ..errors import SVDQuantError
from .calibration_file import Calibration
from .calibration_fit import FittedCalibration
from .estimate import duration, estimate_seconds
from .model_calls import read_calls
from .model_plan import ModelPlan
from .overrides import Overrides, layer_errors
from .precheck import precheck
from .refine import RefineSpec
from .refine_file import RunsOf, quantize_refined
from .refine_file import describe as describe_refined
from .share import Share
from .source import hash_files
from .source_model import OpenSource, SourceModel, open_described
from .spec import QuantSpec
from .to_file import Outcome, QuantizeJob, quantize_to_file

WORST_SHOWN = 5


@dataclass(frozen=True)
class QuantizeRequest:
    """What the user asked for.

    Args:
        source: a safetensors file or a folder of diffusers.
        target: the safetensors file to write.
        spec: settings.
        overrides: layers that stay in 16 bits.
        calibration: a file of recorded inputs, or None.
        device: as torch names it; "" chooses the GPU if there is one.
        overwrite: replace an existing target.
        refine: how to train what the quantizer made, or None.
        prefers_best: take method best, whatever the settings say, if the inputs of layers are known.
    """

    source: Path
    target: Path
    spec: QuantSpec
    overrides: Overrides
    calibration: Path | None = None
    device: str = ""
    overwrite: bool = False
    refine: RefineSpec | None = None
    prefers_best: bool = False


def quantize_file(
    request: QuantizeRequest,
    say: Callable[[str], None],
    on_layer: Callable[[int, int, str], None] = lambda *step: None,
    open_source: OpenSource = open_described,
) -> None:
    """Quantize a file; started by torchrun, together with the other processes.

    Args:
        say: takes a line for the user.
        on_layer: as quantize_to_file.
        open_source: finds out what the file holds.

    Raises:
        CheckpointError: the source or the calibration cannot be used, or changes meanwhile.
        SVDQuantError: the target is there, or see quantize_to_file.
    """
    started = time.perf_counter()
    source, target = request.source, request.target
    if target.is_dir():
        raise SVDQuantError(f"{target} is a folder. Give the name of a file.")
    _refuse_existing(request)
    checkpoint = Checkpoint(source)
    if target.exists() and any(target.samefile(file) for file in checkpoint.files):
        raise SVDQuantError(f"{target} is the source itself. Choose another name.")
    share = Share.of_torchrun()
    device = choose_device(request.device, share)
    model = open_source(checkpoint, request.spec.seed, device)
    if request.spec.method == "best" and request.calibration is None and model.inputs is None:
        raise SVDQuantError(
            "Method best rounds by what layers see. Name a ComfyUI (--host), whose model then runs on noise; or give a "
            "calibration (--calibration), or choose --method fast."
        )
    runs = None if request.refine is None else _open_runs(request, model)
    plan = model.plan
    request.overrides.check(plan.names)
    calibration = _open_calibration(request, model.architecture.name, plan)
    layers = [layer.name for layer in plan.quantized if not layer.is_modulation]
    is_recorded = calibration is not None and all(name in calibration for name in layers)
    if request.prefers_best and (is_recorded or model.inputs is not None):
        request = replace(request, spec=replace(request.spec, method="best"))
    if share.first:
        for line in _announce(request, model, calibration, device):
            say(line)

    def verify() -> None:
        checkpoint.check_unchanged()
        if calibration is not None:
            calibration.file.check_unchanged()

    origin = hash_files(checkpoint.files)
    recorded = hash_files([request.calibration]) if request.calibration else "none"
    verify()  # the hashes are of what is read, too
    settings = ", ".join(f"{key} {value}" for key, value in (asdict(request.spec) | asdict(request.overrides)).items())
    seen = "assumed" if model.inputs is None else "noise"  # what layers are taken to see
    decisive = (
        origin,
        recorded,
        seen,
        str(request.spec),
        str(request.overrides.keep),
        str(request.overrides.precisions),
    )
    job = QuantizeJob(
        architecture=model.architecture,
        plan=plan,
        weights=model.weights,
        names=list(model.weights),
        spec=request.spec,
        device=device,
        target=target,
        fingerprint="; ".join((*decisive, pack_version(), torch.__version__, _device_name(device))),
        metadata={
            "svdquant_source": checkpoint.name,
            "svdquant_source_hash": origin,
            "svdquant_method": settings,
            "svdquant_calibration": recorded,
            "svdquant_made_with": f"torch {torch.__version__}, {_device_name(device)}",
        },
        calibration=calibration,
        inputs=model.inputs,
        overrides=request.overrides,
        extras=model.extras,
        verify=verify,
    )
    refined = ""
    try:
        with writing(target) if share.first else nullcontext():
            if share.first:
                _refuse_existing(request)  # another run may just have ended
            if request.refine is None or runs is None:
                outcome = quantize_to_file(job, on_layer, share)
            else:
                outcome, reports = quantize_refined(
                    job, runs, request.refine, on_layer=on_layer, on_step=on_layer, share=share
                )
                refined = describe_refined(request.refine, reports)
    except torch.cuda.OutOfMemoryError as error:
        raise SVDQuantError(
            f"{device} has too little free memory ({error}). Close other programs that use it, or choose --device cpu; "
            "finished layers are kept."
        ) from error
    finally:
        checkpoint.release()
    if outcome is not None:
        for line in describe(outcome, target, time.perf_counter() - started):
            say(line)
        if refined:
            say(f"refined: {refined}")


def _refuse_existing(request: QuantizeRequest) -> None:
    if request.target.exists() and not request.overwrite:
        raise SVDQuantError(
            f"{request.target} exists already. Choose another name, or allow it to be replaced (--overwrite)."
        )


def is_without_gpu(named: str) -> bool:
    """Whether a run with this --device uses no GPU; ComfyUI must be told, or it fails where there is none."""
    return named == "cpu" or not torch.cuda.is_available()


def choose_device(named: str, share: Share) -> torch.device:
    """The device of this process.

    Raises:
        SVDQuantError: torch knows no such device, or it is not there.
    """
    if not named:
        named = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(named)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", share.rank % max(torch.cuda.device_count(), 1))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SVDQuantError(
            f"--device {named}: {str(error).splitlines()[0]}. Choose cuda, cuda:1, ... or cpu."
        ) from error
    return device


def _precheck(request: QuantizeRequest, model: SourceModel) -> list[str]:
    found = precheck(model.plan, model.weights, request.spec, request.overrides.names)
    return [*found.summary(), *(f"warning: {line}" for line in found.warnings())]


def describe(outcome: Outcome, target: Path, seconds: float) -> list[str]:
    """What to tell the user, a line each."""
    errors = layer_errors(outcome.reports)
    lines = [f"note: {note}" for note in (*outcome.notes, *outcome.kept)]
    if outcome.resumed:
        lines.append(f"{outcome.resumed} layers were finished by an earlier run")
    if errors:
        mean, worst = sum(errors.values()) / len(errors), sorted(errors, key=lambda n: -errors[n])[:WORST_SHOWN]
        lines.append(f"relative output error of {len(errors)} layers: mean {mean:.4f}; largest:")
        lines += [f"  {name}  {errors[name]:.4f}" for name in worst]
    lines.append(
        f"{target}: {outcome.tensors} tensors, {outcome.nbytes / 2**30:.2f} GiB in {seconds:.1f} s, of these "
        f"{outcome.seconds:.1f} s to put the file together"
    )
    return lines


def _announce(
    request: QuantizeRequest, model: SourceModel, calibration: FittedCalibration | None, device: torch.device
) -> list[str]:
    """What to say before the work, a line each."""
    lines = model.plan.describe(request.spec)
    if calibration is None:
        lines += [f"note: {note}" for note in model.notes]
    else:
        lines += [f"note: {request.calibration}: {note}" for note in calibration.notes]
    lines += [f"note: {name} has no place in a {model.plan.title} model and is left out" for name in model.ignored]
    lines += _precheck(request, model)
    seconds = estimate_seconds(model.plan, request.spec, device)
    where = "no GPU is used; this" if device.type == "cpu" else "this"
    took = f"about {duration(seconds)}" if seconds else "less than a few minutes"
    lines.append(
        f"note: {where} takes {took} on this machine. It can be interrupted: the same command goes on where it stopped."
    )
    return lines


def _open_calibration(request: QuantizeRequest, kind: str, plan: ModelPlan) -> FittedCalibration | None:
    if request.calibration is None:
        return None
    return FittedCalibration(Calibration(request.calibration), plan, kind)


def _open_runs(request: QuantizeRequest, model: SourceModel) -> RunsOf:
    if model.runs is None:
        raise SVDQuantError(
            "Method refine trains against the full-precision model. Name a ComfyUI (--host), which can run it; or "
            "choose --method best."
        )
    if request.calibration is None:
        raise SVDQuantError(
            "Method refine trains on calls of the model that were recorded: on noise it makes pictures worse. Record a "
            "calibration with ComfyUI and name it (--calibration), or choose --method best."
        )
    return model.runs(read_calls(request.calibration))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
