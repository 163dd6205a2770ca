"""Quantize in the graph, save, load again, export, load again: the picture must not change by one bit."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .check import Check
from .client import Client, WorkflowOutcome
from .gallery import SUBJECTS
from .metrics import is_identical, relative_error

PRECISIONS = {"int4": "w4a8", "nvfp4": "w4a4"}  # precision -> the arithmetic that the file is made for


@dataclass(frozen=True)
class QuantizedFile:
    """A file that the demo's BF16 FLUX became.

    Args:
        path: as SVDQuantQuantizeModel named it.
        seconds: to quantize, save and draw one picture.
        report: what the node told the user.
        status: what the loader told the user.
        exported: the nunchaku-layout file that SVDQuantExportModel wrote from it.
    """

    precision: str
    path: Path
    seconds: float
    report: str
    status: str
    exported: Path


def run(client: Client, say: Callable[[str], None]) -> tuple[list[QuantizedFile], list[Check]]:
    """Take the BF16 model through every file form, for int4 and nvfp4."""
    files, checks = [], []
    for precision, compute in PRECISIONS.items():
        values = {"model.precision": precision, "model.activations": compute}
        direct = client.run("flux_quantize", SUBJECTS[0].values() | values)
        path = Path(direct.texts["path"])
        say(f"quantized to {precision}, saved and drew in {direct.seconds:.1f} s: {path.name}")

        reloaded = _draw_with(client, path, compute)
        checks.append(_same(f"{precision}: quantized in the graph = saved and loaded again", direct, reloaded))
        say(f"loaded it again: {_verdict(checks[-1])}")

        values = {"model.model_name": path.name, "export.filename_prefix": f"{path.stem}-exported"}
        exported = Path(client.run("flux_export", values).texts["path"])
        restored = _draw_with(client, exported, compute)
        statement = f"{precision}: quantized in the graph = exported to nunchaku layout and loaded"
        checks.append(_same(statement, direct, restored))
        say(f"went through the nunchaku layout: {_verdict(checks[-1])}")
        files.append(
            QuantizedFile(precision, path, direct.seconds, direct.texts["report"], reloaded.texts["status"], exported)
        )
    return files, checks


def _draw_with(client: Client, path: Path, compute: str) -> WorkflowOutcome:
    """Draw the first subject with a file of the host's diffusion models."""
    return client.run("flux_svdquant", SUBJECTS[0].values() | {"model.model_name": path.name, "model.compute": compute})


def _same(statement: str, outcome: WorkflowOutcome, other: WorkflowOutcome) -> Check:
    passed = is_identical(outcome.latent, outcome.image, other.latent, other.image)
    return Check(statement, passed, f"latent difference {relative_error(other.latent, outcome.latent):.1e}")


def _verdict(check: Check) -> str:
    return "identical" if check.passed else f"NOT identical, {check.detail}"
