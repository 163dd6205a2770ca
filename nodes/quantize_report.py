"""What a quantization came to, in words."""

import statistics
from pathlib import Path

from ..svdq_core.quantize import PartReport
from ..svdq_core.quantize.calibration_fit import FittedCalibration
from ..svdq_core.quantize.overrides import layer_errors
from ..svdq_core.quantize.to_file import Outcome
from .host.model.dense_weights import DenseWeights
from .host.quantize.plan_patcher import HostPlan

WORST_SHOWN = 5
SENSITIVE = 3.0  # times the median error: a layer that 4 bits hurt more than others
FAR_OFF = 0.5  # relative error of a layer that has lost its job


def describe(
    path: Path,
    outcome: Outcome,
    *,
    weights: DenseWeights,
    calibration: FittedCalibration | None,
    seconds: float,
    found: HostPlan,
) -> str:
    """The report of a run.

    Args:
        path: of the file. weights: that it was made of. calibration: recorded inputs, or None.
        seconds: from the first check to the file. found: the plan of the run.
    """
    layers = [r for r in outcome.reports if r.scheme != "awq"]
    mean = sum(r.relative_error for r in layers) / max(len(layers), 1)
    seen = "from the model run on noise" if found.request else "assumed normal"  # where nothing was recorded
    origin = f"recorded in {calibration.file.path.name}" if calibration else seen
    count = len({report.layer for report in outcome.reports})
    lines = [
        f"{path.name}: {count} layers in {seconds:.1f} s, {path.stat().st_size / 2**20:.1f} MiB "
        f"(16-bit: {weights.count * 2 / 2**20:.1f} MiB)",
        f"relative output error on inputs {origin}: mean {mean:.4f}",
        "largest errors:",
    ]
    for report in sorted(layers, key=lambda r: r.relative_error, reverse=True)[:WORST_SHOWN]:
        lines.append(f"  {report.layer} rows {report.rows} columns {report.columns}: {report.relative_error:.4f}")
    sensitive = find_sensitive(outcome.reports)
    if sensitive:
        lines.append(f"far above the median, keep_16bit would spare them: {', '.join(sensitive[:WORST_SHOWN])}")
    if weights.patched:
        lines.append(f"patches (LoRAs) baked into {len(weights.patched)} weights")
    if outcome.resumed:
        lines.append(f"{outcome.resumed} layers had been finished by an earlier run")
    if calibration is not None:
        lines += [f"{calibration.file.path.name}: {note}" for note in calibration.notes]
    lines += [f"kept in 16 bits: {sentence}" for sentence in outcome.kept]
    return "\n".join([*lines, *found.notes, *outcome.notes])


def find_sensitive(reports: list[PartReport]) -> list[str]:
    """Layers whose error stands out, worst first."""
    errors = layer_errors(reports)
    if not errors:
        return []
    limit = min(SENSITIVE * statistics.median(errors.values()), FAR_OFF)
    return sorted((name for name in errors if errors[name] > limit), key=lambda name: -errors[name])
