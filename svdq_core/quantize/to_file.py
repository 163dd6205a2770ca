"""From the weights of a whole model to an SVDQuant file, in memory that stays small.

Each layer goes to the journal when it is done, as the tensors that the file will have; when all are there, the file is
put together from them. Several processes, each on a GPU of its own, may share the layers; the first one puts together.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.formats import FORMATS, quantized_format
from ..checkpoint.output import Output, whole
from ..checkpoint.read_plan import Entry as Piece
from ..checkpoint.save import require_space
from ..checkpoint.stream import write_stream
from ..checkpoint.writer import Format
from ..errors import SVDQuantError
from ..layer import Part, QuantizedLayer
from ..models import Architecture
from ..quantized_model import QuantizedModel
from ..values import FLOAT, check_values
from .journal import Journal, StoredLayer
from .one_layer import PartReport
from .overrides import Overrides
from .share import Share
from .spec import QuantSpec
from .statistics import InputStatistics
from .whole_model import other_tensors, quantize_layers

PENDING = 2  # layers that wait to be written while the next one is computed


@dataclass(frozen=True)
class QuantizeJob:
    """What to make of which weights.

    Args:
        architecture, weights, names, calibration: as quantize_layers.
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
    """

    architecture: Architecture
    weights: Mapping[str, Tensor]
    names: list[str]
    spec: QuantSpec
    device: torch.device
    target: Path
    fingerprint: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    calibration: Mapping[str, InputStatistics] | None = None
    overrides: Overrides = field(default_factory=Overrides)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    poll: Callable[[], None] = lambda: None
    make_room: Callable[[], None] = lambda: None
    verify: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Args:
        reports: one for each quantized part, in the order of the model.
        kept: one sentence for each layer that stays in 16 bits.
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
    form = FORMATS[quantized_format(job.architecture, job.spec.precision)](job.architecture)
    if not share.first:
        share.wait()  # until the first has looked through the journal
        _quantize(job, journal, form, share, on_layer)
        share.wait()
        return None
    with journal.locked():
        for name in other_tensors(job.architecture, job.names):  # before the work, not after
            check_values(job.weights[name], FLOAT, name)
        journal.names()
        share.wait()
        resumed, names = _quantize(job, journal, form, share, on_layer)
        share.wait()
        started = time.perf_counter()
        missing = set(names) - journal.names()
        if missing:
            raise SVDQuantError(f"{job.target}: {len(missing)} layers are missing: {min(missing)}, ... Start it again.")
        outcome = _put_together(job, journal, form, names)
        journal.remove()
    return replace(outcome, resumed=resumed, seconds=time.perf_counter() - started)


def _quantize(
    job: QuantizeJob, journal: Journal, form: Format, share: Share, on_layer: Callable
) -> tuple[int, list[str]]:
    """Fill the journal with this process's layers; how many were there, and the names of all."""
    counts = job.architecture.count_blocks(job.names, "host")
    names = [name for name, _ in job.architecture.linears(counts)]
    done = journal.names() & set(names)
    share.wait()  # nobody adds to the journal before all have seen the same one
    mine = share.of({name: _cost(job, name) for name in names if name not in done})
    total, count = len(mine) + len(done), len(done)
    layers = quantize_layers(
        job.architecture,
        job.weights,
        job.names,
        job.spec,
        job.device,
        job.calibration,
        wanted=mine.__contains__,
        keep=job.overrides.keep,
        poll=job.poll,
        make_room=job.make_room,
    )
    pending: list[Future] = []
    with ThreadPoolExecutor(1) as writer:  # the disk works while the next layer is computed
        for finished in layers:
            tensors = _tensors(form, finished.pieces)
            pending.append(writer.submit(journal.put, finished.name, tensors, finished.reports, finished.kept))
            if len(pending) > PENDING:
                pending.pop(0).result()
            count += 1
            on_layer(count, total, finished.name)
        for future in pending:
            future.result()
    return len(done), names


def _tensors(form: Format, pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
    """What a format makes of layers and tensors, packed where they lie and brought to the CPU."""
    outputs = [output for host, piece in pieces.items() for output in form.outputs(host, piece)]
    return {output.name: output.tensor() for output in outputs}


def _overridden(job: QuantizeJob, journal: Journal, form: Format, names: list[str]) -> dict[str, StoredLayer]:
    """What 4 bits turned out to hurt too much, in 16 bits; the journal stays: a resumed run chooses the same."""
    chosen = job.overrides.choose([report for name in names for report in journal.get(name).reports])
    entries = {}
    for name, why in chosen.items():
        pieces = {
            t: job.weights[t].to(job.spec.scale_dtype) for t in (f"{name}.weight", f"{name}.bias") if t in job.names
        }
        outputs = tuple(whole(key, tensor) for key, tensor in _tensors(form, pieces).items())
        entries[name] = StoredLayer(name, outputs, (), why)
    return entries


def _cost(job: QuantizeJob, name: str) -> float:
    """How long a layer takes, in any unit: its weights, more for long inputs where their correlations count."""
    linear = job.architecture.find_linear(name)
    assert linear is not None  # the name comes from the architecture
    rows, columns = linear.relative_size
    if linear.modulation_chunks:
        return 0.1 * rows * columns
    return rows * columns * (1 + columns) if job.spec.method == "best" else rows * columns


def _put_together(job: QuantizeJob, journal: Journal, form: Format, names: list[str]) -> Outcome:
    plain = {name: job.weights[name] for name in other_tensors(job.architecture, job.names)} | dict(job.extras)
    plain = {name: tensor.to("cpu", job.spec.scale_dtype) for name, tensor in plain.items()}
    outline = QuantizedModel(job.architecture, plain={n: t.to("meta") for n, t in plain.items()})
    instead = _overridden(job, journal, form, names)
    reports, kept, announced = [], [], []
    for name in names:
        entry = instead.get(name) or journal.get(name)
        _add_outline(outline, entry)
        reports += entry.reports
        kept += [entry.kept] if entry.kept else []
        announced += [Output(o.name, o.shape, o.dtype, tuple) for o in entry.outputs]
    if not outline.layers:
        raise SVDQuantError(f"{job.target}: no layer is left to be quantized; nothing was written. {kept[0]}")
    outside = [output for host, tensor in plain.items() for output in form.outputs(host, tensor)]

    def made() -> Iterator[Output]:
        job.verify()
        yield from outside
        for name in names:
            yield from (instead.get(name) or journal.get(name)).outputs

    outputs = outside + announced
    nbytes = sum(output.nbytes for output in outputs)
    require_space(job.target, nbytes)
    write_stream(job.target, outputs, form.metadata(outline) | dict(job.metadata), made())
    return Outcome(reports, kept, list(form.notes), 0, len(outputs), nbytes, 0.0)


def _add_outline(outline: QuantizedModel, entry: StoredLayer) -> None:
    """Note schemes, ranks and names, which is all that metadata are made of."""
    nothing = torch.empty(0, device="meta")
    if not entry.reports:
        outline.plain[f"{entry.name}.weight"] = nothing
        return
    parts = tuple(
        Part(r.scheme, r.rows, r.columns, tensors={"proj_up": torch.empty(0, r.rank, device="meta")})
        for r in entry.reports
    )
    outline.layers[entry.name] = QuantizedLayer(parts[-1].columns[1], parts[-1].rows[1], parts)
