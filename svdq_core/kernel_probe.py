"""Tries the kernels on a small layer, the way a model would run them, and says what happened."""

import importlib
import logging
import os
import platform
import shutil
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.gpus import why_no_triton
from ..kernels.packing import unpack_int4
from .apply_layer import apply_layer
from .blob import to_blob
from .layer import QuantizedLayer
from .quantize import QuantSpec
from .quantize.one_layer import quantize_part
from .runtime import resolve_compute

SIZE, TOKENS, RANK = 256, 64, 16  # of the layer that is tried; compiling takes the time, not computing
LARGEST_ERROR = 0.02  # relative to the same layer in plain torch on the CPU; bfloat16 sums in another order give 0.005
MISSING, BROKEN = "missing", "broken"


@dataclass(frozen=True)
class TritonState:
    """Whether Triton can be imported: version, or why not. state: "", MISSING or BROKEN."""

    version: str = ""
    state: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Trial:
    """What came of running a layer.

    Args:
        compute: the mode, as resolve_compute names it. reason: why that one.
        seconds: of the first call, compilation included.
        error: relative to the same layer in plain torch on the CPU; None if it did not run.
        failure: the exception, in one line, or "".
        notes: what the kernels said on the way, e.g. that a slower path was taken.
    """

    compute: str
    reason: str
    seconds: float = 0.0
    error: float | None = None
    failure: str = ""
    notes: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        return self.error is not None and self.error <= LARGEST_ERROR


class _Recorder(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(first_line(record.getMessage()))


def first_line(text: object) -> str:
    """The first line with words of a message, shortened to what fits on a node."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(text).__name__


def triton_state() -> TritonState:
    """Import Triton, as the first sampling step would."""
    try:
        module = importlib.import_module("triton")
        if not hasattr(module, "jit"):
            return TritonState(state=BROKEN, reason="its folder holds no Triton")
        return TritonState(version=getattr(module, "__version__", "of unknown version"))
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return TritonState(state=MISSING, reason="it is not installed")
        return TritonState(state=BROKEN, reason=f"it needs {error.name}, which is not installed")
    except (Exception, SystemExit) as error:  # noqa: BLE001  (a broken Triton raises anything; the user should read what)
        return TritonState(state=BROKEN, reason=f"{type(error).__name__}: {first_line(error)}")


def try_triton(device: torch.device) -> str:
    """Compile and run one of the kernels without any net below it; return "" or why it did not work."""
    if why_no_triton(device):
        return why_no_triton(device) or ""
    try:
        unpack = importlib.import_module("..kernels.step.unpack_weight", __package__)
        requantize = importlib.import_module("..kernels.step.requantize_weight", __package__)
        part, _, _ = quantize_part(_weight(), None, QuantSpec(rank=RANK), "probe")
        qweight, wscales = part["qweight"].to(device), part["wscales"].to(device)
        codes = unpack.expand_codes(qweight).cpu()
        if not torch.equal(codes, unpack_int4(part["qweight"]).to(codes.dtype)):
            return "a kernel compiled but computes wrong values"
        requantize.requantize_weight({"qweight": qweight, "wscales": wscales}, "int4")
        torch.cuda.synchronize(device)
    except Exception as error:  # noqa: BLE001  (compilers fail in many ways; the user should read which)
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def try_layer(precision: str, device: torch.device) -> Trial:
    """Run a quantized layer in the mode that `auto` means, and compare it with plain torch on the CPU.

    Args:
        precision: "int4" or "nvfp4".
    """
    compute, reason = resolve_compute("auto", precision, device)
    recorder, logger = _Recorder(), logging.getLogger("svdquant")
    logger.addHandler(recorder)
    started = time.perf_counter()
    try:
        part, bias, _ = quantize_part(_weight(), torch.zeros(SIZE), QuantSpec(precision=precision, rank=RANK), "probe")
        layer = QuantizedLayer(SIZE, SIZE, (part,), bias)
        x = torch.randn(TOKENS, SIZE, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
        expected = apply_layer(layer, x, compute).float()
        blob, layout = to_blob(layer)
        there = layout.read(blob.to(device), None if bias is None else bias.to(device))
        started = time.perf_counter()
        found = apply_layer(there, x.to(device), compute).float().cpu()  # the copy waits for the device
        error = float((found - expected).norm() / expected.norm())
        return Trial(compute, reason, time.perf_counter() - started, error, notes=tuple(recorder.lines))
    except Exception as error:  # noqa: BLE001  (whatever would end a generation belongs into the report)
        line = f"{type(error).__name__}: {first_line(error)}"
        return Trial(compute, reason, time.perf_counter() - started, failure=line, notes=tuple(recorder.lines))
    finally:
        logger.removeHandler(recorder)


def _weight() -> torch.Tensor:
    return torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * SIZE**-0.5


def cache_folder() -> Path:
    """Where Triton keeps compiled kernels."""
    own = os.environ.get("TRITON_CACHE_DIR")
    return Path(own) if own else Path(os.environ.get("TRITON_HOME", Path.home())) / ".triton" / "cache"


def why_not_writable(folder: Path) -> str:
    """Empty if files can be made in the folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def missing_build_tools() -> list[str]:
    """What Triton needs to build its launcher and does not find: a C compiler, Python's headers."""
    missing = []
    compilers = [os.environ.get("CC", ""), "cc", "gcc", "clang", "cl", "tcc"]
    if platform.system() != "Windows" and not any(name and shutil.which(name) for name in compilers):
        missing.append("a C compiler")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing.append("Python's headers (Python.h)")
    return missing
