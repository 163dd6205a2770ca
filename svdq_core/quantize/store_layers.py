"""Quantized layers to the journal, as the tensors that the file will have, while the next ones are computed."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..checkpoint.read_plan import Entry as Piece
from ..checkpoint.writer import Format
from .finished import Finished
from .journal import Journal
from .whole_model import on_cpu


def store(journal: Journal, form: Format, unit: str, members: Sequence[Finished], inference: bool) -> None:
    """Journal the layers of a unit; what the device has no memory to pack is packed on the CPU.

    Args:
        inference: the mode of the thread that made them, which is not this one's by itself.
    """
    pieces = {name: piece for f in members for name, piece in f.pieces.items()}
    reports = [report for f in members for report in f.reports]
    kept = "\n".join(f.kept for f in members if f.kept)
    with torch.inference_mode(inference), torch.no_grad():
        tensors = _packed(form, pieces)
    journal.put(unit, tensors, reports, kept)


def _packed(form: Format, pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
    try:
        return as_tensors(form, pieces)
    except torch.OutOfMemoryError:
        pass  # outside of this block, so that what failed holds nothing
    return as_tensors(form, {n: p.cpu() if isinstance(p, Tensor) else on_cpu(p) for n, p in pieces.items()})


def as_tensors(form: Format, pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
    """What a format makes of layers and tensors, packed where they lie and brought to the CPU."""
    outputs = [output for host, piece in pieces.items() for output in form.outputs(host, piece)]
    return {output.name: output.tensor() for output in outputs}
