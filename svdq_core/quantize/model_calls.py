"""Calls of a whole model, kept while it draws: what refining runs it on again.

A calibration file holds them beside the statistics of its layers:

@call.<i>.<j>          a tensor of call i, in the dtype that it had
metadata "calls kept"  for each call its random key and what its arguments are, tensors by their number
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.read_errors import printable, reading
from ..checkpoint.safetensors_file import SafetensorsFile
from ..errors import SVDQuantError
from .calibration_file import RECORD_AGAIN
from .statistics import named_generator

KEPT = 24  # calls; of FLUX.1 at 1024 x 1024 they take 0.2 GB
LARGEST = 64 << 20  # bytes of a call; larger ones are not kept
KEY = "calls kept"  # of the metadata
MARK = "@call"


class _UnstorableError(TypeError):
    """An argument that no file can hold."""


@dataclass
class ModelCalls:
    """Calls drawn with equal chance from all that were offered.

    Args:
        seed: of the choice.
        offered: how many there were.
    """

    seed: int = 0
    offered: int = 0
    _kept: dict[float, tuple[Any, list[Tensor]]] = field(default_factory=dict, repr=False)

    def offer(self, arguments: Mapping[str, Any]) -> None:
        """A call of the model; it is copied if it is kept. One of anything but tensors and plain values is not."""
        self.offered += 1
        key = float(torch.rand((), dtype=torch.float64, generator=named_generator(self.seed, f"call {self.offered}")))
        if len(self._kept) >= KEPT and key >= max(self._kept):
            return
        tensors: list[Tensor] = []
        try:
            form = _describe(dict(arguments), tensors)
        except _UnstorableError:
            return
        if sum(tensor.nbytes for tensor in tensors) > LARGEST:
            return
        self._kept[key] = form, [tensor.detach().to("cpu", copy=True).contiguous() for tensor in tensors]
        if len(self._kept) > KEPT:
            del self._kept[max(self._kept)]

    def __len__(self) -> int:
        return len(self._kept)

    def tensors(self) -> dict[str, Tensor]:
        """For the file."""
        calls = [tensors for _, (_, tensors) in sorted(self._kept.items(), key=lambda item: item[0])]
        return {f"{MARK}.{i}.{j}": tensor for i, call in enumerate(calls) for j, tensor in enumerate(call)}

    def metadata(self) -> dict[str, str]:
        """For the file."""
        forms = [[key, form] for key, (form, _) in sorted(self._kept.items(), key=lambda item: item[0])]
        return {KEY: json.dumps({"offered": self.offered, "calls": forms})}

    def calls(self) -> list[dict[str, Any]]:
        """Arguments by name, of each call that was kept."""
        return [_restore(form, tensors) for _, (form, tensors) in sorted(self._kept.items(), key=lambda item: item[0])]

    @staticmethod
    def read(path: Path, seed: int = 0) -> "ModelCalls":
        """Those of a calibration file; none where it is older than they are.

        Raises:
            CheckpointError: the file is damaged.
        """
        shown = printable(str(path))
        file = SafetensorsFile(path, shown, "calibration", RECORD_AGAIN)
        found = ModelCalls(seed)
        with reading(shown, RECORD_AGAIN):
            stored = json.loads(file.metadata.get(KEY, '{"offered": 0, "calls": []}'))
            found.offered = int(stored["offered"])
            names = set(file.names())
            for index, (key, form) in enumerate(stored["calls"]):
                count = sum(name.startswith(f"{MARK}.{index}.") for name in names)
                tensors = [file.read(f"{MARK}.{index}.{j}").clone() for j in range(count)]
                if not isinstance(_restore(form, tensors), dict):
                    raise ValueError("a call has no arguments")
                found._kept[float(key)] = form, tensors
            file.release()
        return found


def read_calls(path: Path) -> list[dict[str, Any]]:
    """The calls of a calibration file, to refine with.

    Raises:
        CheckpointError: the file is damaged. SVDQuantError: it holds none.
    """
    calls = ModelCalls.read(path).calls()
    if not calls:
        raise SVDQuantError(
            f"{printable(path.name)} holds no calls of the whole model, which refine trains on. Record it again with "
            "this version of the pack, or choose method best."
        )
    return calls


def _describe(value: Any, tensors: list[Tensor]) -> Any:
    """A value as JSON; its tensors are appended to the list.

    Raises:
        _UnstorableError: it holds something else.
    """
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            raise _UnstorableError
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_describe(item, tensors) for item in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _describe(item, tensors) for key, item in value.items()}}
    raise _UnstorableError


def _restore(form: Any, tensors: list[Tensor]) -> Any:
    (kind, content), *others = form.items()
    if others or kind not in ("tensor", "value", "list", "tuple", "dict"):
        raise ValueError(f"{str(form)[:60]} is no argument")
    if kind == "tensor":
        return tensors[content]
    if kind == "value":
        return content
    if kind == "dict":
        return {key: _restore(item, tensors) for key, item in content.items()}
    items = [_restore(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
