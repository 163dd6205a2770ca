"""From a file of any kind that is read here to one of another kind, piece by piece, in memory that stays small.

The source is read twice: once to check all of it and to learn the shapes of what comes out, so that nothing is written
of a damaged file and the header can go first; once to write.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .checkpoint import Checkpoint
from .checkpoint.dialects import find_dialect
from .checkpoint.formats import FORMATS
from .checkpoint.output import Output
from .checkpoint.read_plan import Entry, Plan
from .checkpoint.save import writing
from .checkpoint.stream import write_stream
from .checkpoint.writer import Format
from .errors import SVDQuantError
from .layer import Part, QuantizedLayer
from .quantized_model import QuantizedModel

Progress = Callable[[int, int, str], None]  # steps done, steps in all, name of the piece


@dataclass(frozen=True)
class Converted:
    """What was done.

    Args:
        source_title: what kind of file it was.
        notes: what the user should know about the result, one sentence each.
        tensors, nbytes: of the file written. seconds: it took.
    """

    source_title: str
    notes: tuple[str, ...]
    tensors: int
    nbytes: int
    seconds: float


def convert(
    source: Path,
    target: Path,
    to: str,
    *,
    overwrite: bool = False,
    on_progress: Progress = lambda *step: None,
    strict: bool = False,
    base: Path | None = None,
) -> Converted:
    """Convert a file or folder.

    Args:
        to: a key of FORMATS.
        overwrite: replace an existing target.
        on_progress: called before each piece, twice for every piece of the model; what it raises ends the run.
        strict: write nothing that only this pack reads, for readers that refuse unknown tensors.
        base: a second file, with what is not quantized, where the source does not have it.

    Raises:
        CheckpointError: the source is damaged, of no kind that is read here, or changes meanwhile.
        ArchitectureError: the format cannot hold the model.
        SVDQuantError: the target is there, another run writes it, or it cannot be written. Nothing new remains then.
    """
    started = time.perf_counter()
    if to not in FORMATS:
        raise SVDQuantError(f"{to!r} is no format to write. Choose {', '.join(FORMATS)}.")
    _refuse_existing(target, overwrite)
    if target.is_dir():
        raise SVDQuantError(f"{target} is a folder. Give the name of a file.")
    checkpoint = Checkpoint(source, base)
    if target.exists() and any(target.samefile(file) for file in checkpoint.files):
        raise SVDQuantError(f"{target} is the source itself. Choose another name.")
    dialect = find_dialect(checkpoint)
    plan = dialect.read_plan(checkpoint)
    # of the formats read here only these hold more than another format can
    form = FORMATS[to](plan.architecture, dialect.name in ("comfy", "modelopt"), checkpoint.name, strict)
    try:
        with writing(target):
            _refuse_existing(target, overwrite)  # another run may just have ended
            outputs = _write(plan, target, form, on_progress)
    finally:
        checkpoint.release()
    nbytes = sum(output.nbytes for output in outputs)
    notes = (*plan.notes, *form.notes)
    return Converted(dialect.title, notes, len(outputs), nbytes, time.perf_counter() - started)


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise SVDQuantError(f"{target} exists already. Choose another name, or allow it to be replaced (--overwrite).")


def _write(plan: Plan, target: Path, form: Format, on_progress: Progress) -> list[Output]:
    """Read twice, write once; what the file then holds."""
    outline, outputs, total = QuantizedModel(plan.architecture, metadata=plan.metadata), [], 2 * len(plan)
    for step, (host, entry) in enumerate(plan.entries()):
        on_progress(step, total, host)
        outputs += [_without_data(output) for output in form.outputs(host, entry)]
        _add_outline(outline, host, entry)
    form.finish()

    def made() -> Iterator[Output]:
        for step, (host, entry) in enumerate(plan.entries(), start=len(plan)):
            on_progress(step, total, host)
            yield from form.outputs(host, entry)
        plan.checkpoint.check_unchanged()

    write_stream(target, outputs, form.metadata(outline), made())
    on_progress(total, total, "")
    return outputs


def _without_data(output: Output) -> Output:
    return Output(output.name, output.shape, output.dtype, tuple)


def _add_outline(outline: QuantizedModel, host: str, entry: Entry) -> None:
    """Note shapes and dtypes, which is all that metadata are made of."""
    if isinstance(entry, Tensor):
        outline.plain[host] = entry.to("meta")
        return
    parts = tuple(
        Part(p.scheme, p.rows, p.columns, p.act_unsigned, {n: t.to("meta") for n, t in p.tensors.items()})
        for p in entry.parts
    )
    bias = None if entry.bias is None else entry.bias.to("meta")
    outline.layers[host] = QuantizedLayer(entry.in_features, entry.out_features, parts, bias)
