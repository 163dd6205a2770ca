"""From the weights of a whole model to an SVDQuant file, in memory that stays small.

Each layer goes to the journal when it is done, as the tensors that the file will have; when all are there, the file is
put together from them. Several processes, each on a GPU of its own, may share the layers; the first one puts together.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.formats import FORMATS, quantized_format
from ..checkpoint.output import Output, whole
from ..checkpoint.save import require_space
from ..checkpoint.stream import write_stream
from ..checkpoint.writer import Format
from ..errors import SVDQuantError
from ..layer import Part, QuantizedLayer
from ..models import Architecture
from ..quantized_model import QuantizedModel
from ..values import FLOAT, check_values
from .finished import Finished
from .journal import Journal, StoredLayer
from .model_plan import ModelPlan, PlannedLayer
from .one_layer import PartReport
from .overrides import Overrides
from .read_ahead import read_ahead
from .share import Share
from .spec import QuantSpec
from .statistics import InputStatistics
from .store_layers import as_tensors, store
from .whole_model import InputsOf, groups_of, is_kept, other_tensors, quantize_layers

AUTO = "auto"
PENDING = 2  # layers that wait to be written while the next one is computed


@dataclass(frozen=True)
class QuantizeJob:
    """What to make of which weights.

    Args:
        architecture: of the model that the file will hold.
        plan, weights, calibration, inputs: as quantize_layers. names: of all tensors of the weights.
        spec: settings.
        device: where the arithmetic runs.
        target: the file to write.
        fingerprint: of everything that decides the bytes of a layer; finished layers of an earlier run count if theirs
            is the same.
        metadata: what the file says about its making.
        overrides: layers that stay in 16 bits.
        extras: host tensors that the file needs and `weights` lacks.
        poll, make_room: as quantize_layers.
        verify: raises if what was read has changed since the run began; called before anything is written.
        form: a key of FORMATS, or "auto": the family's published layout where there is one.
    """

    architecture: Architecture
    plan: ModelPlan
    weights: Mapping[str, Tensor]
    names: list[str]
    spec: QuantSpec
    device: torch.device
    target: Path
    fingerprint: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    calibration: Mapping[str, InputStatistics] | None = None
    inputs: InputsOf | None = None
    overrides: Overrides = field(default_factory=Overrides)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    poll: Callable[[], None] = lambda: None
    make_room: Callable[[], None] = lambda: None
    verify: Callable[[], None] = lambda: None
    form: str = AUTO

    def open_format(self) -> Format:
        """The format to write."""
        chosen = quantized_format(self.architecture, self.spec.precision) if self.form == AUTO else self.form
        if self.form == AUTO and any(p != self.spec.precision for _, p in self.overrides.precisions):
            chosen = "svdquant"  # no layout of others holds several precisions
        return FORMATS[chosen](self.architecture)


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Args:
        reports: one for each quantized part, in the order of the model.
        kept: what stays in 16 bits and why, a sentence for each layer or for several of one reason.
        notes: what the user should know about the file, one sentence each.
        resumed: layers that an earlier run had finished.
        tensors, nbytes: of the file.
        seconds: what putting the file together took.
    """

    reports: list[PartReport]
    kept: list[str]
    notes: list[str]
    resumed: int
    tensors: int
    nbytes: int
    seconds: float


def quantize_to_file(
    job: QuantizeJob, on_layer: Callable[[int, int, str], None] = lambda *step: None, share: Share | None = None
) -> Outcome | None:
    """Quantize a model into a file.

    Args:
        on_layer: called with (layers done, layers in all, name of the one just done); what it raises ends the run, and
            the same call goes on from there.
        share: which of several processes this one is; None: the only one.

    Returns:
        What came of it; None for any but the first of several processes.

    Raises:
        SVDQuantError: see quantize_layer; or the file cannot be written, or another run writes it. An older file of
            that name is left as it was.
    """
    share = share or Share()
    journal = Journal(job.target, job.fingerprint)
    form = job.open_format()
    if not share.first:
        share.wait()  # until the first has looked through the journal
        _quantize(job, journal, form, share, on_layer)
        share.wait()
        return None
    with journal.locked():
        for name in other_tensors(job.plan, job.names):  # before the work, not after
            if (tensor := job.weights[name]).is_floating_point():  # text encoders carry their tokenizer as bytes
                check_values(tensor, FLOAT, name)
        journal.names()
        share.wait()
        resumed, units = _quantize(job, journal, form, share, on_layer)
        share.wait()
        started = time.perf_counter()
        missing = set(units) - journal.names()
        if missing:
            raise SVDQuantError(f"{job.target}: {len(missing)} layers are missing: {min(missing)}, ... Start it again.")
        outcome = _put_together(job, journal, form, units)
        journal.remove()
    return replace(outcome, resumed=resumed, seconds=time.perf_counter() - started)


def _units(plan: ModelPlan) -> dict[str, list[PlannedLayer]]:
    """Name of its first layer -> layers that are quantized, and journalled, together."""
    return {first: group for layers in plan.blocks.values() for first, group in groups_of(layers).items()}


def _quantize(
    job: QuantizeJob, journal: Journal, form: Format, share: Share, on_layer: Callable
) -> tuple[int, dict[str, list[PlannedLayer]]]:
    """Fill the journal with this process's layers; how many were there, and all units."""
    units = _units(job.plan)
    done = journal.names() & set(units)
    share.wait()  # nobody adds to the journal before all have seen the same one
    mine = share.of({name: _cost(job, group) for name, group in units.items() if name not in done})
    count = sum(len(units[name]) for name in done)
    total = count + sum(len(units[name]) for name in mine)
    resumed = count
    layers = quantize_layers(
        job.plan,
        job.weights,
        job.spec,
        job.device,
        calibration=job.calibration,
        inputs=job.inputs,
        wanted=mine.__contains__,
        keep=_whole_groups(job.overrides.keep, units),
        precision=job.overrides.precision,
        poll=job.poll,
        make_room=job.make_room,
    )
    first_of = {layer.name: name for name, group in units.items() for layer in group}
    waiting: dict[str, list[Finished]] = {}
    pending: list[Future] = []
    inference = torch.is_inference_mode_enabled()
    with ThreadPoolExecutor(1) as writer:  # packs, fetches and writes while the next layer is computed
        for finished in layers:
            unit = first_of[finished.name]
            members = waiting.setdefault(unit, [])
            members.append(finished)
            if len(members) == len(units[unit]):
                pending.append(writer.submit(store, journal, form, unit, waiting.pop(unit), inference))
            if len(pending) > PENDING:
                pending.pop(0).result()
            count += 1
            on_layer(count, total, finished.name)
        for future in pending:
            future.result()
    return resumed, units


def _whole_groups(keep: Sequence[str], units: Mapping[str, list[PlannedLayer]]) -> tuple[str, ...]:
    """The patterns, and the names of all layers that a file may hold as one with a layer that they name."""
    named = [x.name for group in units.values() if any(is_kept(x.name, keep) for x in group) for x in group]
    return (*keep, *named)


def _overridden(
    job: QuantizeJob, journal: Journal, form: Format, units: Mapping[str, list[PlannedLayer]]
) -> dict[str, StoredLayer]:
    """What 4 bits turned out to hurt too much, in 16 bits; the journal stays: a resumed run chooses the same."""
    chosen = job.overrides.choose([report for name in units for report in journal.get(name).reports])
    entries = {}
    for unit, group in units.items():
        reasons = [chosen[layer.name] for layer in group if layer.name in chosen]
        if not reasons:
            continue
        keys = [f"{layer.name}.{end}" for layer in group for end in ("weight", "bias")]
        pieces = {key: job.weights[key].to(job.spec.scale_dtype) for key in keys if key in job.weights}
        outputs = tuple(whole(key, tensor) for key, tensor in as_tensors(form, pieces).items())
        entries[unit] = StoredLayer(unit, outputs, (), "\n".join(reasons))
    return entries


def _cost(job: QuantizeJob, group: Sequence[PlannedLayer]) -> float:
    """How long a unit takes, in any unit: its weights, more for long inputs where their correlations count."""
    weights, columns = sum(layer.weights for layer in group), group[0].in_features
    if group[0].is_modulation:
        return 0.1 * weights
    return weights * (1 + columns) if job.spec.method == "best" else weights


def _put_together(job: QuantizeJob, journal: Journal, form: Format, units: Mapping[str, list[PlannedLayer]]) -> Outcome:
    plain = {name: job.weights[name] for name in other_tensors(job.plan, job.names)} | dict(job.extras)
    plain = {n: t.to("cpu", job.spec.scale_dtype if t.is_floating_point() else t.dtype) for n, t in plain.items()}
    outline = QuantizedModel(job.architecture, plain={n: t.to("meta") for n, t in plain.items()})
    instead = _overridden(job, journal, form, units)
    reports, kept, announced = [], [], []
    for name, group in units.items():
        stored = instead.get(name) or journal.get(name)
        _add_outline(outline, stored, group)
        reports += stored.reports
        kept += stored.kept.splitlines()
        announced += [Output(o.name, o.shape, o.dtype, tuple) for o in stored.outputs]
    if not outline.layers:
        why = next(iter(kept + job.plan.reasons()), "")
        raise SVDQuantError(f"{job.target}: no layer is left to be quantized; nothing was written. {why}")
    outside = [output for host, tensor in plain.items() for output in form.outputs(host, tensor)]
    form.finish()

    def made() -> Iterator[Output]:
        job.verify()
        yield from outside
        for outputs in read_ahead(lambda name: (instead.get(name) or journal.get(name)).outputs, list(units)):
            yield from outputs

    outputs = outside + announced
    nbytes = sum(output.nbytes for output in outputs)
    require_space(job.target, nbytes)
    write_stream(job.target, outputs, form.metadata(outline) | dict(job.metadata), made())
    return Outcome(reports, kept + job.plan.reasons(), list(form.notes), 0, len(outputs), nbytes, 0.0)


def _add_outline(outline: QuantizedModel, stored: StoredLayer, group: Sequence[PlannedLayer]) -> None:
    """Note schemes, ranks and names, which is all that metadata are made of."""
    for layer in group:
        reports = [report for report in stored.reports if report.layer == layer.name]
        if not reports:
            outline.plain[f"{layer.name}.weight"] = torch.empty(0, device="meta")
            continue
        parts = tuple(
            Part(r.scheme, r.rows, r.columns, tensors={"proj_up": torch.empty(0, r.rank, device="meta")})
            for r in reports
        )
        outline.layers[layer.name] = QuantizedLayer(layer.in_features, layer.out_features, parts)
