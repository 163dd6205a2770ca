"""The command line's `quantize`: a 16-bit model file into an SVDQuant file, without ComfyUI."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..checkpoint.container import Checkpoint, read_json
from ..checkpoint.dense_read import DenseModel
from ..checkpoint.metadata import pack_version
from ..checkpoint.save import writing
from ..errors import SVDQuantError
from .calibration_file import Calibration
from .calibration_fit import FittedCalibration
from .known_inputs import KNOWN_INPUTS
from .layout_plan import plan_layout
from .model_plan import ModelPlan
from .one_layer import quantize_part
from .overrides import Overrides, layer_errors
from .share import Share
from .source import hash_files
from .spec import QuantSpec
from .to_file import Outcome, QuantizeJob, quantize_to_file

WORST_SHOWN = 5
TRIAL_SIZE = 1024  # of the layer that tells how fast a machine without GPU is
TRIAL_TOKENS = 320 * 16  # rows of every layer when the model runs on noise


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
    """

    source: Path
    target: Path
    spec: QuantSpec
    overrides: Overrides
    calibration: Path | None = None
    device: str = ""
    overwrite: bool = False


def quantize_file(
    request: QuantizeRequest,
    say: Callable[[str], None],
    on_layer: Callable[[int, int, str], None] = lambda *step: None,
) -> None:
    """Quantize a file; started by torchrun, together with the other processes.

    Args:
        say: takes a line for the user.
        on_layer: as quantize_to_file.

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
    model = DenseModel(checkpoint)
    blocks = KNOWN_INPUTS.get(model.architecture.name)
    if request.spec.method == "best" and request.calibration is None and blocks is None:
        raise SVDQuantError(
            "Method best rounds by what layers see. Give a calibration (--calibration), use Quantize Model in ComfyUI, "
            "which runs the real model; or choose --method fast."
        )
    plan = plan_dense(model)
    request.overrides.check(plan.names)
    calibration = _open_calibration(request, model.architecture.name, plan)
    share = Share.of_torchrun()
    device = choose_device(request.device, share)
    if share.first:
        for note in () if calibration is None else calibration.notes:
            say(f"note: {request.calibration}: {note}")
        if calibration is None and blocks is None:
            say(
                "note: without ComfyUI the inputs of layers are taken for standard normal. Quantize Model in ComfyUI "
                "runs the real model on noise, and a calibration (--calibration) records your prompts: both are better."
            )
        for name in model.ignored:
            say(f"note: {name} has no place in a {model.architecture.title} model and is left out")
        if device.type == "cpu":
            expected = _duration(estimate_seconds(model, request.spec))
            say(
                f"note: no GPU is used; this takes about {expected} on this processor. It can be interrupted: "
                "the same command goes on where it stopped."
            )

    def verify() -> None:
        checkpoint.check_unchanged()
        if calibration is not None:
            calibration.file.check_unchanged()

    origin = hash_files(checkpoint.files)
    recorded = hash_files([request.calibration]) if request.calibration else "none"
    verify()  # the hashes are of what is read, too
    settings = ", ".join(f"{key} {value}" for key, value in (asdict(request.spec) | asdict(request.overrides)).items())
    decisive = (origin, recorded, str(request.spec), str(request.overrides.keep))
    job = QuantizeJob(
        architecture=model.architecture,
        plan=plan,
        weights=model,
        names=list(model),
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
        inputs=None if blocks is None else lambda held: blocks(held, list(model), request.spec.seed, device),
        overrides=request.overrides,
        extras=position_size(model),
        verify=verify,
    )
    try:
        with writing(target) if share.first else nullcontext():
            if share.first:
                _refuse_existing(request)  # another run may just have ended
            outcome = quantize_to_file(job, on_layer, share)
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


def _refuse_existing(request: QuantizeRequest) -> None:
    if request.target.exists() and not request.overwrite:
        raise SVDQuantError(
            f"{request.target} exists already. Choose another name, or allow it to be replaced (--overwrite)."
        )


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


def position_size(model: DenseModel) -> dict[str, torch.Tensor]:
    """What tells ComfyUI for which image size a PixArt was trained: a `pos_embed` of that length.

    The host's files have one; for folders of diffusers the config says how long it is.
    """
    sample_size = read_json(model.checkpoint, "config").get("sample_size")
    if model.architecture.name != "pixart" or "pos_embed" in model or not isinstance(sample_size, int):
        return {}
    patch = model.shape("x_embedder.proj.weight")[-1]
    return {"pos_embed": torch.zeros(1, (sample_size // patch) ** 2, 1)}


def estimate_seconds(model: DenseModel, spec: QuantSpec) -> float:
    """How long a model will take on the CPU, from one small layer and one product."""
    weight = torch.randn(TRIAL_SIZE, TRIAL_SIZE, generator=torch.Generator().manual_seed(0))
    tokens = weight.repeat(TRIAL_TOKENS // TRIAL_SIZE, 1)
    started = time.perf_counter()
    quantize_part(weight, None, QuantSpec(spec.precision, spec.activations, spec.rank), "trial")
    tokens @ weight
    seconds = time.perf_counter() - started
    name, linear = next(model.architecture.linears(model.counts))
    width = model.shape(f"{name}.weight")[1] / linear.relative_size[1]
    sizes = (linear.relative_size for _, linear in model.architecture.linears(model.counts))
    return seconds * sum(rows * columns for rows, columns in sizes) * width**2 / TRIAL_SIZE**2


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


def _duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def plan_dense(model: DenseModel) -> ModelPlan:
    """What becomes of the model's layers, by its family's published layout."""
    shapes = {name: model.shape(f"{name}.weight") for name, _ in model.architecture.linears(model.counts)}
    parameters = sum(math.prod(model.shape(name)) for name in model)
    return plan_layout(model.architecture, {n: (s[0], s[1]) for n, s in shapes.items()}, parameters)


def _open_calibration(request: QuantizeRequest, kind: str, plan: ModelPlan) -> FittedCalibration | None:
    if request.calibration is None:
        return None
    return FittedCalibration(Calibration(request.calibration), plan, kind)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
