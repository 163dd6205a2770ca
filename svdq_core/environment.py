"""The environment check: what this machine will do with SVDQuant files, and what to repair, before a long download.

Runs in seconds on any machine and never raises: what cannot be found out becomes a line of the report.
"""

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..kernels.gpus import generation, why_no_triton
from ..kernels.paths.layer_paths import describe_paths, why_not_native
from . import kernel_probe, published_files
from .gpu_machine import architecture_name, nvidia_driver
from .measured_choice import describe_choices, why_not_measured

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
GIB = 2**30
INDENT = "\n" + 10 * " "  # of the further lines of a finding, below the first one's text
WINDOWS = platform.system() == "Windows"
TRITON_PACKAGE = "triton-windows" if WINDOWS else "triton"


@dataclass(frozen=True)
class Finding:
    """One entry of the report: level OK, NOTE or PROBLEM; advice says what to do, or is empty."""

    level: str
    text: str
    advice: str = ""


def check_environment(device: torch.device | None = None) -> list[tuple[str, list[Finding]]]:
    """Look at the machine: (heading, findings) of each section.

    Args:
        device: where models will run; None: the first GPU that torch can use, else the CPU.
    """
    device = best_device() if device is None else device
    return [
        ("This machine", _guarded(_software, device) + _guarded(_gpu, device) + _guarded(_triton, device)),
        ("What will run", _guarded(_kernels, device) + _guarded(_timings, device)),
        ("Which file to download", _guarded(_files, device)),
    ]


def report(device: torch.device | None = None) -> str:
    """The check as text, problems and what to do about them at the end."""
    sections = check_environment(device)
    lines = ["SVDQuant environment check"]
    for heading, findings in sections:
        lines += ["", heading, *(f"  {f.level:8}{INDENT.join(f.text.splitlines())}" for f in findings)]
    todo = [f for _, findings in sections for f in findings if f.advice]
    lines += ["", "What to do"]
    for number, finding in enumerate(todo, 1):
        lines += [f"  {number}. {finding.text.splitlines()[0]}", f"     {finding.advice}"]
    if not any(f.level == PROBLEM for f in todo):
        lines.append("  Nothing has to be repaired." if not todo else "  Nothing else; models will run.")
    return "\n".join(lines)


def best_device() -> torch.device:
    """The device that a model would run on, as far as torch alone can tell."""
    for kind in ("cuda", "xpu", "mps"):
        backend = getattr(torch, kind, None)
        try:
            if backend is not None and backend.is_available():
                return torch.device(kind, 0) if kind != "mps" else torch.device(kind)
        except RuntimeError:  # a driver that is there but does not answer
            continue
    return torch.device("cpu")


def _guarded(look: Callable[[torch.device], Iterator[Finding]], device: torch.device) -> list[Finding]:
    found = []
    try:
        for finding in look(device):
            found.append(finding)
    except Exception as error:  # noqa: BLE001  (a check reports a broken machine, it does not break on it)
        text = f"{look.__name__.strip('_')} could not be looked at: {type(error).__name__}: "
        found.append(Finding(NOTE, text + kernel_probe.first_line(error)))
    return found


def _software(device: torch.device) -> Iterator[Finding]:
    yield Finding(OK, f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {sys.executable}")
    backend = f"CUDA {torch.version.cuda}" if torch.version.cuda else ""
    backend = f"ROCm {torch.version.hip}" if torch.version.hip else backend
    yield Finding(OK, f"torch {torch.__version__}" + (f" for {backend}" if backend else " without GPU support"))
    driver = nvidia_driver()
    if device.type != "cpu":
        return
    if driver and not backend:
        yield Finding(
            PROBLEM,
            f"there is an NVIDIA GPU (driver {driver}), but this torch cannot use it",
            "Install torch for CUDA into this Python; pytorch.org names the command for your system.",
        )
    elif backend and not torch.cuda.is_available():
        yield Finding(PROBLEM, f"torch finds no GPU: {_why_no_gpu()}", _advice_no_gpu(driver))


def _why_no_gpu() -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # noqa: BLE001  (torch raises what the driver said)
        return kernel_probe.first_line(error)
    return "no device is visible; is CUDA_VISIBLE_DEVICES set?"


def _advice_no_gpu(driver: str) -> str:
    if torch.version.hip:
        return "Update the AMD driver, or install the torch made for the ROCm version that you have."
    if driver:
        return (
            f"Update the NVIDIA driver ({driver} may be too old for CUDA {torch.version.cuda}), or install a torch for "
            "an older CUDA."
        )
    return "Install the NVIDIA driver. Without a GPU everything runs, but a picture takes minutes to hours."


def _gpu(device: torch.device) -> Iterator[Finding]:
    if device.type == "cpu":
        yield Finding(NOTE, "no GPU is used: models run on the CPU, far too slow for more than trying things out")
        return
    if device.type != "cuda":
        yield Finding(NOTE, f"GPU of kind {device.type}: it runs through plain torch, without this pack's kernels")
        return
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    driver = nvidia_driver()
    yield Finding(
        OK,
        f"{properties.name} ({architecture_name(device)}), {total / GIB:.1f} GiB, {free / GIB:.1f} GiB of it free"
        + (f", driver {driver}" if driver else ""),
    )
    if not torch.version.hip and not runs_on(torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()):
        yield Finding(
            PROBLEM,
            f"this torch was built for {', '.join(torch.cuda.get_arch_list())}, not for this GPU",
            "Install a newer torch (for older cards: one for an older CUDA); pytorch.org names the command.",
        )


def runs_on(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether code of one of the architectures (sm_86, compute_90, ...) runs on an NVIDIA GPU of the capability."""
    for name in built_for:
        kind, _, digits = name.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdecimal() or len(digits) < 2:
            continue
        major, minor = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if kind == "compute" and (major, minor) <= capability:
            return True
    return not built_for


def _triton(device: torch.device) -> Iterator[Finding]:
    reason = why_no_triton(device)
    if reason and device.type != "cuda":
        yield Finding(NOTE, f"Triton is not used here: {reason}")
        return
    state = kernel_probe.triton_state()
    if state.state:
        yield Finding(
            PROBLEM,
            f"Triton cannot be used, so slower paths through plain torch run: {state.reason}",
            _pip_install("-U " if state.state == kernel_probe.BROKEN else ""),
        )
        return
    if reason:
        yield Finding(NOTE, f"Triton {state.version} is there, but {reason}")
        return
    folder = kernel_probe.cache_folder()
    refusal = kernel_probe.why_not_writable(folder)
    if refusal:
        yield Finding(
            PROBLEM,
            f"compiled kernels cannot be kept in {folder} ({refusal}), so slower paths run",
            "Make the folder writable, or name another one in the environment variable TRITON_CACHE_DIR.",
        )
        return
    failure = kernel_probe.try_triton(device)
    if failure:
        yield Finding(
            PROBLEM, f"Triton {state.version} cannot compile, so slower paths run: {failure}", _advice_compile()
        )
    else:
        yield Finding(OK, f"Triton {state.version} compiles; it keeps its kernels in {folder}")


def _advice_compile() -> str:
    missing = kernel_probe.missing_build_tools()
    if missing:
        where = (
            "copy the folders include and libs of the same Python version beside python.exe (the triton-windows page "
            "describes it)"
            if WINDOWS
            else "on Debian and Ubuntu: apt install gcc python3-dev"
        )
        return f"Missing here: {' and '.join(missing)}; {where}."
    return f"Update it to the version that belongs to your torch. {_pip_install('-U ')}"


def _pip_install(option: str = "") -> str:
    return f'Run: "{sys.executable}" -m pip install {option}{TRITON_PACKAGE}'


def _kernels(device: torch.device) -> Iterator[Finding]:
    compiles = not kernel_probe.try_triton(device)
    for precision in ("int4", "nvfp4"):
        trial = kernel_probe.try_layer(precision, device)
        head = f"{precision} files: {trial.compute}"
        paths = describe_paths(precision, trial.compute, generation(device)) if compiles else []
        others = [f"why not {name}: {why}" for name, why in paths if why and why not in trial.reason]
        notes = "".join(f"\n{note}" for note in (trial.reason, *others, *trial.notes))
        if trial.failure:
            advice = "Please report this with the whole text; until then choose compute w4a16 in the loader."
            yield Finding(PROBLEM, f"{head}: a trial failed: {trial.failure}{notes}", advice)
        elif not trial.right:
            advice = "Choose compute w4a16 in the loader, and please report this with the whole text."
            yield Finding(PROBLEM, f"{head}: a trial gave wrong values (error {trial.error:.3f}){notes}", advice)
        else:
            speed = speed_class(trial.compute, precision, device, compiles)
            tried = f"tried on a small layer: right; the first call took {trial.seconds:.1f} s"
            yield Finding(OK, f"{head}, {speed}{notes}\n{tried}")


def _timings(device: torch.device) -> Iterator[Finding]:
    if device.type != "cuda":
        return
    why_not = why_not_measured("int4", device)
    if why_not is not None:
        yield Finding(OK, f"auto goes by the table, because {why_not}")
        return
    lines = describe_choices(device)
    if lines:
        yield Finding(OK, "\n".join(("auto was measured on this GPU, which nobody had timed", *lines)))
    else:
        text = "nobody has timed this kind of GPU: the first model that is loaded with compute auto is measured, once"
        yield Finding(NOTE, text)


def speed_class(compute: str, precision: str, device: torch.device, compiles: bool) -> str:
    """What to expect of a mode on a device, in words; the README has the figures.

    Args:
        compiles: whether kernels can be compiled; otherwise plain torch runs.
    """
    if device.type == "cpu":
        return "for trying out only"
    if not compiles:
        return "in plain torch: saves memory, not time"
    if compute == "w4a4" and why_not_native(precision, generation(device))[1] is None:
        return "4-bit tensor cores, the fastest class"
    if compute == "w4a8" and generation(device).slow_int8 is None:
        return "int8 tensor cores, faster than BF16"
    return "saves memory, about the speed of BF16 at best"


def _files(device: torch.device) -> Iterator[Finding]:
    name = published_files.example_name(device)
    if published_files.file_precision(device) == published_files.FP4:
        yield Finding(OK, f"svdq-fp4_r32-<model>.safetensors, e.g. {name}; svdq-int4 files run as well")
    else:
        yield Finding(OK, f"svdq-int4_r32-<model>.safetensors, e.g. {name}; svdq-fp4 files run too, but not faster")
    yield Finding(OK, "by family\n" + "\n".join(published_files.family_lines(device)))
    yield Finding(OK, "r128 files are closer to the original and 0.7 GiB larger; all go to models/diffusion_models")
    total = torch.cuda.mem_get_info(device)[1] / GIB if device.type == "cuda" else None
    yield Finding(OK, published_files.memory_advice(device, total))
