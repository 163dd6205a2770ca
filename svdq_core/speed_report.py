"""How fast each way to compute is on a GPU, as a small file that a user can attach to a report.

It becomes the evidence of the GPU's row in kernels/gpus.py (tools/gpu_evidence.py), so that `auto` no longer has to
measure on GPUs of its kind. Nothing in it tells who the user is: no path, no name of a user or of a machine.
"""

import getpass
import json
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..kernels.gpus import generation
from . import measured_choice
from .checkpoint.metadata import pack_version
from .gpu_machine import describe_gpu
from .layer import Part, QuantizedLayer
from .measurements import Record, recall
from .models import FLUX
from .quantized_model import QuantizedModel
from .runtime import resolve_compute
from .schemes import GROUP_SIZE
from .values import E4M3

KIND, FORMAT = "svdquant speed report", 1
# FLUX.1's layers: inputs, outputs, whether behind a GELU, how many
LAYERS = (
    (3072, 9216, False, 38),
    (3072, 3072, False, 76),
    (3072, 12288, False, 38),
    (12288, 3072, True, 76),
    (3072, 21504, False, 38),
)
RANK = 32
_PATH = re.compile(r"(?:[A-Za-z]:)?[\\/][^\s'\",;:)]+")


def speed_report(device: torch.device) -> dict[str, Any]:
    """What a GPU and its software are, and the times of each way to compute FLUX.1's layers; plain data for JSON.

    On a device that cannot be timed there are no times. Takes some seconds, and what compiling takes.
    """
    report: dict[str, Any] = {"kind": KIND, "format": FORMAT}
    if device.type != "cuda":
        report["machine"] = {"gpu": f"none ({device.type})", "system": platform.system(), "torch": torch.__version__}
        return {**report, "machine": report["machine"] | {"pack": pack_version()}, "measured": {}}
    machine = describe_gpu(device)
    report |= {"machine": machine, "row": generation(device).name, "evidence": generation(device).evidence}
    report["measured"] = {precision: _measured(precision, device) for precision in measured_choice.MEASURED}
    known = recall(machine)
    report["loaded"] = {"times": known.times, "choices": list(known.choices.values())}
    return without_paths(report)


def _measured(precision: str, device: torch.device) -> dict[str, Any]:
    """Times of one kind of files on a GPU, the table's choice and the one that follows from the times."""
    model, record = random_model(precision), Record(describe_gpu(device))
    by_table = resolve_compute("auto", precision, device)[0]
    samples = measured_choice.samples_of(model, device)
    choice = measured_choice.measure(samples, device, torch.bfloat16, record, by_table, kept=False)
    found = {"by_table": by_table, "tokens": measured_choice.TOKENS, "times": record.times, "out": record.out}
    return found | ({} if choice is None else {"choice": choice.mode, "seconds": choice.seconds})


def random_model(precision: str) -> QuantizedModel:
    """Layers of FLUX.1's sizes with random codes; layers of one size share their tensors."""
    layers = {}
    for inputs, outputs, act_unsigned, count in LAYERS:
        unsigned, tensors = act_unsigned and precision == "int4", _tensors(precision, inputs, outputs)
        part = Part(precision, (0, outputs), (0, inputs), unsigned, tensors)
        layers |= {f"{inputs}>{outputs}.{i}": QuantizedLayer(inputs, outputs, (part,)) for i in range(count)}
    return QuantizedModel(FLUX, layers)


def _tensors(precision: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
    generator, half = torch.Generator().manual_seed(0), torch.bfloat16
    scales = torch.rand(inputs // GROUP_SIZE[precision], outputs, generator=generator) * 0.01 + 0.005
    codes = torch.randint(-128, 128, (outputs, inputs // 2), generator=generator, dtype=torch.int16)
    return {
        "qweight": codes.to(torch.int8),
        "wscales": scales.to(half if precision == "int4" else E4M3[0]),
        "smooth_factor": torch.ones(inputs, dtype=half),
        "proj_down": (torch.randn(inputs, RANK, generator=generator) * inputs**-0.5).to(half),
        "proj_up": (torch.randn(outputs, RANK, generator=generator) * 0.1).to(half),
    }


def without_paths(value: Any) -> Any:
    """Plain data in which nothing that looks like a path is left, nor the names of the user and the machine."""
    if isinstance(value, dict):
        return {name: without_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_paths(each) for each in value]
    if not isinstance(value, str):
        return value
    text = _PATH.sub("<path>", value)
    for name in _own_names():
        text = re.sub(rf"\b{re.escape(name)}\b", "<name>", text, flags=re.IGNORECASE)
    return text


def _own_names() -> list[str]:
    names = [platform.node(), Path.home().name]
    with suppress(Exception):  # a container may know no user
        names.append(getpass.getuser())
    return [name for name in names if len(name) > 2 and name not in ("root", "user")]


def write_report(device: torch.device, path: Path) -> str:
    """Write a speed report; what came out, in a line for the user.

    Raises:
        OSError: the file cannot be written.
    """
    report = speed_report(device)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not report["measured"]:
        return f"{path}: written, but without times: there is no GPU here that torch can time."
    chosen = ", ".join(f"{name} files {m.get('choice', 'nothing')}" for name, m in report["measured"].items())
    return f"{path}: written; measured as the fastest: {chosen}. Please attach it to your report."
