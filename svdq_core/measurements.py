"""What was measured on this machine, kept on disk: how long each way to compute takes, and what follows for a model.

    {"format": 1, "machines": {KEY: {
        "machine": {"gpu": ..., "driver": ..., ...},
        "times": {"int4 3072>9216 r32": {"w4a8 with int8 tensor cores": 0.00123, ...}, ...},     seconds
        "out": {"int4 3072>9216 r32": {"w4a4 with ...": "it failed (...)"}},
        "choices": {"int4: 38 x int4 3072>9216 r32, ...": {"mode": "w4a8", "paths": {...}, ...}}}}}

KEY names everything that the times depend on, so that a new driver or torch is measured anew and old entries come back
with it. A file that cannot be read counts as none and is replaced; where none can be written, what was measured lasts
as long as the process.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..kernels.ladder import logger, say_once
from .gpu_machine import state_folder

FORMAT = 1
FILE_NAME = "measurements.json"
PARTS = ("times", "out", "choices")
MOST_DEATHS = 2  # so often a process may die while it measures: a driver that falls over must not do so at every load


@dataclass
class Record:
    """What is known of one machine; see the top of this file."""

    machine: dict[str, str]
    times: dict[str, dict[str, float]] = field(default_factory=dict)
    out: dict[str, dict[str, str]] = field(default_factory=dict)
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return "; ".join(f"{name} {value}" for name, value in self.machine.items())

    def add(self, other: "Record") -> None:
        """Take over what another one knows and this one does not."""
        for part in PARTS:
            mine, theirs = getattr(self, part), getattr(other, part)
            mine.update({name: value for name, value in theirs.items() if name not in mine})


_of_this_process: dict[str, Record] = {}  # by key: what was decided stands until the process ends


def default_path() -> Path:
    """Where measurements are kept."""
    return state_folder() / FILE_NAME


def _read_all(path: Path) -> dict[str, Any]:
    """Key -> what the file has under it; nothing, with a warning, where it is no file of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:  # of a newer version of the pack, beside this one
            return {}
        for raw in found["machines"].values():
            _check(raw)
        return found["machines"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning("%s is damaged (%s): measurements kept there are made again.", path, what)
        return {}


def _check(raw: Any) -> None:
    """Raise ValueError unless an entry is as it was written."""
    times = [seconds for entry in raw["times"].values() for seconds in entry.values()]
    if not all(isinstance(seconds, float) and seconds > 0 for seconds in times):
        raise ValueError("a time is no positive number")
    for choice in raw["choices"].values():
        if not (isinstance(choice["mode"], str) and isinstance(choice["paths"], dict)):
            raise ValueError("a choice without mode and paths")
    if not all(isinstance(entry, dict) for entry in (raw["machine"], *raw["out"].values())):
        raise ValueError("no entry of a machine")


def recall(machine: dict[str, str], path: Path | None = None) -> Record:
    """What is known of a machine, by this process and on disk; what the process has decided comes first."""
    record = Record(machine)
    if record.key in _of_this_process:
        record.add(_of_this_process[record.key])
    raw = _read_all(path or default_path()).get(record.key)
    if raw is not None:
        record.add(Record(machine, *(raw[part] for part in PARTS)))
    return record


def keep(record: Record, path: Path | None = None, *, on_disk: bool = True) -> None:
    """Remember a record in this process, and on disk beside what others have put there meanwhile.

    Args:
        on_disk: whether it is true of the machine, and not only of this moment.
    """
    path = path or default_path()
    _of_this_process.setdefault(record.key, Record(record.machine)).add(record)
    if not on_disk:
        return
    every = _read_all(path)
    theirs = every.get(record.key)
    merged = Record(record.machine, *((dict(theirs[part]) for part in PARTS) if theirs else ()))
    merged.add(record)
    every[record.key] = {"machine": merged.machine, **{part: getattr(merged, part) for part in PARTS}}
    try:
        _replace(path, json.dumps({"format": FORMAT, "machines": every}, indent=1))
    except OSError as error:
        say_once("What was measured cannot be kept in %s (%s); the next start measures again.", path, error)


@contextmanager
def attempt(record: Record, device: torch.device) -> Iterator[bool]:
    """Whether a machine may be measured, with a note on disk until that has come to its end.

    The note stays where the process dies, or where the GPU no longer answers: nothing that it says then can be trusted.
    """
    note = default_path().with_name(f"measuring-{hashlib.sha256(record.key.encode()).hexdigest()[:16]}")
    deaths = note.stat().st_size if note.is_file() else 0
    if deaths >= MOST_DEATHS:
        say_once("Measuring did not come to its end %d times: the table decides. To try again, delete %s", deaths, note)
        yield False
        return
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_bytes(b"." * (deaths + 1))
    except OSError as error:
        logger.debug("no note in %s (%s)", note, error)
    try:
        yield True
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:  # CUDA's
        raise
    except BaseException:  # somebody stopped it
        note.unlink(missing_ok=True)
        raise
    note.unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    """Write a file so that whoever reads finds the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(part).replace(path)
    except OSError:
        Path(part).unlink(missing_ok=True)
        raise
