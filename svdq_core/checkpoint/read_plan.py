"""What a reader is going to do: which tensors of a checkpoint make which piece of the host's model.

A plan is made from names alone, so what is missing or left over is known before any tensor is read; then the pieces are
read one at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blob import side_by_side
from ..errors import CheckpointError
from ..layer import QuantizedLayer
from ..models import Architecture, BlockMap
from ..quantized_model import QuantizedModel
from ..values import FLOAT, check_values
from .container import Checkpoint
from .read_errors import reading
from .same_model import SameModel
from .shape_check import ShapeCheck
from .shared_inputs import name_inputs

Entry = QuantizedLayer | Tensor
NAMED_AT_MOST = 10  # names that a message lists
# Pieces that are read at a time. 16 cores, 1.9 GiB from an SSD: 2 took 2.3 s, 4 1.8, 8 1.5, 12 1.5 (2026-12-01); a hard
# disk has to seek between them, and each holds a layer.
MOST_READERS = 6


@dataclass(frozen=True)
class Job:
    """One piece of the host's model.

    Args:
        host: module name of a quantized layer, or full name of a plain tensor.
        source: what the checkpoint calls it, or the first of what it is made of; for messages.
        read: makes it from the checkpoint.
    """

    host: str
    source: str
    read: Callable[[], Entry]


class Plan:
    """All pieces of a model, in the order of its blocks.

    Args:
        checkpoint: where they are read from.
        architecture: what the model must consist of.
        metadata: what goes along with the model; as in the file if None.
    """

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture, metadata: dict[str, str] | None = None):
        self.checkpoint, self.architecture = checkpoint, architecture
        self.metadata = dict(checkpoint.metadata if metadata is None else metadata)
        self._jobs: list[Job] = []
        self._wanted: set[str] = set()
        self._missing: list[str] = []
        self._others_ignored = False
        self._watch: SameModel | None = None
        self._watched: set[str] = set()
        self._shapes = ShapeCheck(architecture)

    def __len__(self) -> int:
        return len(self._jobs)

    def want(self, *names: str) -> None:
        """Note that these tensors will be read."""
        for name in names:
            self._wanted.add(name)
            if name not in self.checkpoint:
                self._missing.append(name)

    @property
    def base(self) -> Checkpoint | None:
        """The second file, which has what is not quantized."""
        return self.checkpoint.base

    @property
    def hosts(self) -> set[str]:
        """Host names of all pieces so far: modules of quantized layers, full names of plain tensors."""
        return {job.host for job in self._jobs}

    def ignore_others(self) -> None:
        """Tensors of the checkpoint that make no piece are left over without complaint."""
        self._others_ignored = True

    def unwanted(self) -> list[str]:
        """Tensors of the checkpoint that no piece takes so far."""
        return [name for name in self.checkpoint if name not in self._wanted]

    def watch(self, watch: SameModel) -> None:
        """Have the pieces so far looked at when they are read."""
        self._watch, self._watched = watch, self.hosts

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of what was read, one sentence each."""
        return () if self._watch is None else tuple(self._watch.notes)

    def add(self, host: str, source: str, read: Callable[[], Entry]) -> None:
        """Append a piece whose tensors were noted with want()."""
        self._jobs.append(Job(host, source, read))

    def add_plain(self, host: str, names: Iterable[str], change: Callable[[Tensor], Tensor] | None = None) -> None:
        """Append an unquantized tensor: the named ones, stacked on rows, then changed."""
        names = tuple(names)
        self.want(*names)

        def read() -> Tensor:
            tensors = [self.checkpoint[name] for name in names]
            tensor = join(tensors, 0, f"{self.checkpoint.name}: {names[0]}")
            return tensor if change is None else change(tensor)

        self.add(host, names[0], read)

    def check_names(self) -> None:
        """Raise CheckpointError where tensors are missing or left over."""
        complete = not self._missing and not self._others_ignored
        extra = sorted(set(self.checkpoint) - self._wanted) if complete else []
        for title, names in (("missing", list(dict.fromkeys(self._missing))), ("unexpected", extra)):
            if names:
                first = ", ".join(names[:NAMED_AT_MOST])
                raise CheckpointError(
                    f"{self.checkpoint.name}: {len(names)} {title} tensor{'s' if len(names) > 1 else ''}: {first}"
                    f"{', ...' if len(names) > NAMED_AT_MOST else ''}. The file is incomplete or not a "
                    f"{self.architecture.title} file."
                )

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """(host name, layer or tensor), one at a time, each checked.

        Raises:
            CheckpointError: tensors are missing, left over, misshapen, of a wrong dtype or not finite.
        """
        self.check_names()
        yield from self._checked(map(self._run, self._jobs))

    def piece(self, host: str) -> Entry:
        """One of the pieces by its host name, checked as far as one can be by itself.

        Raises:
            CheckpointError: as entries().
        """
        job = next(job for job in self._jobs if job.host == host)
        entry = self._run(job)
        self._check(job, entry)
        return entry

    def read(self) -> QuantizedModel:
        """The whole model, several pieces at a time.

        Raises:
            CheckpointError: as entries().
        """
        self.check_names()
        model = QuantizedModel(self.architecture, metadata=self.metadata)
        # unpacking is memory traffic in torch and numpy, which let other threads run meanwhile
        workers = min(torch.get_num_threads(), MOST_READERS)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="svdquant-read")
        try:
            for host, entry in self._checked(pool.map(self._run_to_keep, self._jobs)):
                if isinstance(entry, QuantizedLayer):
                    model.layers[host] = entry
                else:
                    model.plain[host] = entry
            self.checkpoint.check_unchanged()
        finally:
            pool.shutdown(cancel_futures=True)
            self.checkpoint.release()
        name_inputs(model)
        model.notes = self.notes
        return model

    def _run(self, job: Job) -> Entry:
        self.checkpoint.staging.restart()
        with reading(f"{self.checkpoint.name}: {job.source}"):
            entry = job.read()
            if not isinstance(entry, QuantizedLayer):  # whose parts look at theirs
                check_values(entry, FLOAT, f"{self.checkpoint.name}: {job.source}")
            return entry

    def _run_to_keep(self, job: Job) -> Entry:
        entry = self._run(job)
        return side_by_side(entry) if isinstance(entry, QuantizedLayer) and entry.arena is None else entry

    def _checked(self, entries: Iterable[Entry]) -> Iterator[tuple[str, Entry]]:
        waiting = set(self._watched)
        for job, entry in zip(self._jobs, entries, strict=True):
            self._check(job, entry)
            if self._watch is not None and job.host in waiting:
                self._watch.look(job.host, entry)
                waiting.remove(job.host)
                if not waiting:
                    self._watch.finish()
                    self._watched = set()  # a second reading looks at nothing again
            yield job.host, entry

    def _check(self, job: Job, entry: Entry) -> None:
        where = f"{self.checkpoint.name}: {job.source}"
        if isinstance(entry, QuantizedLayer):
            entry.check_tiling(where)  # what is in the parts was checked when they were read
            name, shape = f"{job.host}.weight", (entry.out_features, entry.in_features)
        else:
            name, shape = job.host, tuple(entry.shape)
        self._shapes.check(name, shape, where)


def plain_names(plan: Plan, block: BlockMap, index: int) -> Iterator[str]:
    """The unquantized tensors of a block that a file with ComfyUI's names must have, by their name in the block."""
    older = plan.architecture.older_tensors
    for name in block.plain:
        full = f"{block.host}.{index}.{name}"
        former = [full.removesuffix(newer) + end for newer, end in older.items() if full.endswith(newer)]
        if name not in block.optional or any(n in plan.checkpoint for n in (full, *former)):
            yield name


def host_modules(plan: Plan, suffix: str) -> list[str]:
    """Every module of a file that has a tensor of that suffix, in the order of the file."""
    return [name.removesuffix(suffix) for name in plan.checkpoint if name.endswith(suffix)]


def plan_rest(plan: Plan) -> None:
    """Append every tensor that no piece takes so far, under its own name."""
    for name in plan.unwanted():
        plan.add_plain(name, [name])


def has_bias(plan: Plan, host: str) -> bool:
    """Whether a Linear of ComfyUI's model has a bias."""
    linear = plan.architecture.find_linear(host)
    return host not in plan.architecture.without_bias if linear is None else linear.bias


def join(tensors: list[Tensor], dim: int, where: str) -> Tensor:
    """Concatenate; CheckpointError where the shapes or dtypes do not fit each other."""
    if len(tensors) == 1:
        return tensors[0]
    outer = {(t.ndim, *(n for d, n in enumerate(t.shape) if d != dim), t.dtype) for t in tensors}
    if len(outer) > 1 or tensors[0].ndim <= dim:
        found = " and ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors)
        raise CheckpointError(f"{where}: tensors that belong together disagree: {found}. The file is damaged.")
    return torch.cat(tensors, dim)
