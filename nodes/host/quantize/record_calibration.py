"""Recording the inputs of a MODEL's layers while users run their prompts.

A calibration goes by its name. Nodes run again whenever their inputs change, or always, as the host's cache is set; so
what begins one anew is a number, the take, and no action: the same name and take, the same calibration, and where it is
in memory no more, its file is read and goes on. The MODEL that records carries it in the host's list of wrappers, which
clones, LoRA loaders and samplers pass on. Hooks lie on the layers only while that MODEL runs.
"""

import json
import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import comfy.patcher_extension
import folder_paths
import torch
from torch import Tensor

from ....svdq_core.checkpoint.read_errors import reading
from ....svdq_core.errors import SVDQuantError
from ....svdq_core.quantize.calibrate import Collector
from ....svdq_core.quantize.calibration_file import RECORD_AGAIN, Calibration
from ....svdq_core.quantize.hessian_choice import choose_hessians
from ....svdq_core.quantize.model_calls import ModelCalls
from ..files import output_path
from ..model.model_hash import weights_hash
from ..model.quantized_linear import is_quantized
from .plan_patcher import plan_patcher

logger = logging.getLogger("svdquant")

KIND = "svdquant_calibration"  # folder below output/ and models/
KEY = "svdquant_calibration"  # of the wrappers
MOST_TIMES = 4096  # distinct times that are noted

_WRAPPERS = comfy.patcher_extension.WrappersMP


class RunningCalibration:
    """What was recorded under a name so far.

    Args:
        name: of its file. take: another number is another calibration.
        source: hash of the model's weights without LoRAs. kind: of model.
        layers: host name -> (out_features, in_features) of what is to be seen.
        collector: what gathers.
        before: metadata of the file that it goes on from.
        whole: calls of the whole model so far.
    """

    def __init__(
        self,
        name: str,
        take: int,
        source: str,
        *,
        kind: str,
        layers: dict[str, tuple[int, int]],
        collector: Collector,
        before: dict[str, str] | None = None,
        whole: ModelCalls | None = None,
    ):
        before = before or {}
        self.name, self.take, self.source, self.kind = name, take, source, kind
        self.layers, self.collector = layers, collector
        self.prompts, self.interrupted = int(before.get("prompts", 0)), int(before.get("interrupted", 0))
        self.calls = int(before.get("calls", 0))
        self.times: set[float] = {float(time) for time in json.loads(before.get("times", "[]"))}
        self.patched = before.get("patched", "no") == "yes"
        self.whole = whole or ModelCalls()
        self.modulation: set[str] = set()  # layers of which the mean alone counts: a row for each picture is enough
        self._lock = threading.Lock()  # several GPUs run copies of a model at once

    def sampling(self, executor, *args, **kwargs):
        """Wrapper around one prompt's sampling: counts it."""
        self.prompts += 1
        try:
            return executor(*args, **kwargs)
        except BaseException:  # the host's interruption, too
            self.interrupted += 1
            raise

    def step(self, executor, x: Tensor, t: Tensor, *args, **kwargs):
        """Wrapper around one call of the model: shows the input of every layer to the collector."""
        self.calls += 1
        if len(self.times) < MOST_TIMES:
            self.times |= {round(float(time), 4) for time in t.flatten().tolist()}
        names = ("c_concat", "c_crossattn", "control")  # as apply_model has them; the options are the sampler's own
        given = {"x": x, "t": t, **dict(zip(names, args, strict=False)), **kwargs}
        given.pop("transformer_options", None)
        if given.get("control") is None:
            with self._lock:
                self.whole.offer({name: value for name, value in given.items() if value is not None})
        with _uncompiled(), self._listening(executor.class_obj.diffusion_model):
            return executor(x, t, *args, **kwargs)

    @contextmanager
    def _listening(self, network: torch.nn.Module) -> Iterator[None]:
        handles = [
            network.get_submodule(name).register_forward_pre_hook(partial(self._take_in, name)) for name in self.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _take_in(self, name: str, module: torch.nn.Module, args: tuple) -> None:
        with self._lock:
            self.collector.add(name, args[0])

    @property
    def unseen(self) -> list[str]:
        """Layers that did not run."""
        return sorted(self.layers.keys() - set(self.collector.names()))

    def metadata(self) -> dict[str, str]:
        return {
            "name": self.name,
            "take": str(self.take),
            "source": self.source,
            "architecture": self.kind,
            "prompts": str(self.prompts),
            "interrupted": str(self.interrupted),
            "calls": str(self.calls),
            "times": json.dumps(sorted(self.times)),
            "patched": "yes" if self.patched else "no",
            **self.whole.metadata(),
        }

    def save(self) -> Path:
        """Write the file and return its path.

        Raises:
            SVDQuantError: nothing was recorded, or the file cannot be written.
        """
        if not self.collector.names():
            why = "the MODEL of Start Calibration did not run" if self.calls == 0 else "none of its layers was seen"
            raise SVDQuantError(
                f"{self.name}: nothing was recorded: {why}. Lead the MODEL of Start Calibration through the sampler."
            )
        path = calibration_path(self.name)
        self.collector.save(path, self.metadata(), self.whole.tensors())
        return path


def _uncompiled():
    """Compiled layers would run without their hooks. Older torch has no way to tell."""
    return torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()


_alive: weakref.WeakValueDictionary[str, RunningCalibration] = weakref.WeakValueDictionary()


def start_calibration(patcher, name: str, take: int, tokens: int, hessian_mib: int):
    """A clone of a MODEL that records while it runs; pictures stay the same.

    Args:
        name: of the calibration and of its file below output/svdquant_calibration.
        take: another number forgets what was recorded under this name.
        tokens: to keep of each input. hessian_mib: memory for Hessians.

    Raises:
        SVDQuantError: the model is quantized already, or is not the one that this calibration began with.
        ArchitectureError: its layers cannot be told apart; see plan_patcher.
    """
    if is_quantized(patcher):
        raise SVDQuantError(
            "This model is an SVDQuant model already. Record with the full-precision model that is to be quantized."
        )
    path = calibration_path(name)
    found, source = plan_patcher(patcher), weights_hash(patcher)
    calibration = _alive.get(name)
    if calibration is None or calibration.take != take:
        calibration = _open(
            path, name, take, source=source, kind=found.architecture.name, layers=found.plan.shapes, tokens=tokens
        )
        if not calibration.collector.names():
            hessians = choose_hessians(found.plan, hessian_mib << 20)
            calibration.collector = Collector(tokens=tokens, hessians=hessians)
    if calibration.source != source:
        raise SVDQuantError(
            f"{name}, take {take}, was begun with another model. Give this model another name, or another take to "
            "start over."
        )
    calibration.modulation = {layer.name for layer in found.plan.quantized if layer.is_modulation}
    _alive[name] = calibration
    calibration.patched |= bool(patcher.patches)
    clone = patcher.clone()
    for kind, wrapper in ((_WRAPPERS.OUTER_SAMPLE, calibration.sampling), (_WRAPPERS.APPLY_MODEL, calibration.step)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone


def _open(path: Path, name: str, take: int, *, source: str, kind: str, layers, tokens: int) -> RunningCalibration:
    """A new calibration, or one that goes on from the file of the same take."""
    collector, before, whole = Collector(tokens=tokens), None, None
    if path.exists():
        file = Calibration(path)
        if file.metadata.get("take") == str(take):
            source, before = file.metadata.get("source", ""), file.metadata
            collector, whole = Collector.resume(file, tokens=tokens), ModelCalls.read(path)
            logger.info("calibration %s goes on from %s prompts", name, before.get("prompts"))
        else:
            logger.info("calibration %s starts over with take %d", name, take)
    with reading(str(path), RECORD_AGAIN):  # its metadata are texts of anybody's
        return RunningCalibration(
            name, take, source, kind=kind, layers=layers, collector=collector, before=before, whole=whole
        )


def calibration_of(patcher) -> RunningCalibration:
    """The calibration that a MODEL makes.

    Raises:
        SVDQuantError: it makes none.
    """
    wrappers = patcher.get_wrappers(_WRAPPERS.APPLY_MODEL, KEY)
    if not wrappers:
        raise SVDQuantError(
            "This MODEL does not record. Connect the MODEL that comes out of Start Calibration, or of a node behind it."
        )
    return wrappers[0].__self__


def calibration_path(name: str) -> Path:
    """Where the calibration of that name is written.

    Raises:
        SVDQuantError: the name leads out of the folder.
    """
    return output_path(name, overwrite=True, kind=KIND)


def _folders() -> list[Path]:
    return [Path(folder_paths.get_output_directory()) / KIND, Path(folder_paths.models_dir) / KIND]


def list_calibrations() -> list[str]:
    """Files of calibrations, own ones and those that others gave, as the user's list shows them."""
    found = {path.relative_to(root).as_posix() for root in _folders() for path in root.rglob("*.safetensors")}
    return sorted(found)


def find_calibration(name: str) -> Path:
    """Full path of an entry of list_calibrations.

    Raises:
        SVDQuantError: there is no such file any more.
    """
    for root in _folders():
        path = root / name
        if path.is_file() and path.resolve().is_relative_to(root.resolve()):
            return path
    raise SVDQuantError(f"{name}: not found among the calibrations. Refresh the page and choose again.")
