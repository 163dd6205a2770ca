"""Forwards as CUDA graphs, where launching kernels takes longer than running them: small images, slow processors.

A step of FLUX.1 is some 1500 launches; at 512 x 512 pixels the GPU waits for Python half of the time. So our MODELs
carry a wrapper of the host's kind around `apply_model`. The first calls of a form run as usual: kernels are compiled,
and it is measured whether the GPU waits. If it does, and rules.py finds nothing that Python decides anew in each step,
the next call is captured, compared with the result computed as usual, and replayed from then on. A graph is dropped as
soon as a weight, a LoRA, a patch or the form of the call is another; a model keeps no more than MOST of them.
"""

import logging
import os
import time
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import torch
from torch import Tensor

from .addresses import Weights
from .captured import Captured, CudaGraph, UnequalError, WaitsError
from .inputs import UnseenError, split
from .rules import KEY, SWITCH, for_graph, for_model, why_not

logger = logging.getLogger("svdquant")

MOST = 2  # graphs of a model: one for each of cond and uncond, where they do not fit into one batch
WARM = 2  # calls of a form before it is captured; the first one compiles
WAITS = 0.9  # issuing a call takes this part of the time until it is done, or more: the GPU waits for Python
MOST_LOST = 2  # graphs of a form: on a full card weights come and go
ROOM = 2 << 30  # bytes that have to be free: what a forward works in is held as long as the graph


class _Form:
    """Calls of one form: how often they came, and their graph once there is one."""

    def __init__(self):
        self.calls = 0
        self.graph: Captured | None = None
        self.refused = False
        self.lost = 0
        self._times: tuple | None = None

    def eager(self, compute, call, device: torch.device) -> Tensor:
        """As usual, with a stopwatch once everything is compiled."""
        self.calls += 1
        if self.calls < WARM or device.type != "cuda":
            return compute(call)
        begun, done = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start = time.perf_counter()
        begun.record()
        out = compute(call)
        done.record()
        self._times = 1e3 * (time.perf_counter() - start), begun, done
        return out

    def gpu_waits(self) -> bool:
        """Whether issuing a call took nearly as long as the GPU needed for it."""
        if os.environ.get(SWITCH) == "1":
            return True
        if self._times is None:
            return False
        issued, begun, done = self._times
        done.synchronize()
        return issued >= WAITS * begun.elapsed_time(done)


class Graphs:
    """The graphs of one model of the host's; all of its clones share them."""

    def __init__(self):
        self._forms: dict[Any, _Form] = {}
        self._patches: Any = None

    def __deepcopy__(self, _memo) -> "Graphs":
        return Graphs()  # a copied model has weights of its own

    def clear(self) -> None:
        """Forget all graphs, and free what they worked in."""
        self._forms.clear()

    def count(self) -> int:
        return sum(form.graph is not None for form in self._forms.values())

    def form(self, key: Any, patches: Any) -> _Form:
        """The calls of a form, with the patches of a LoRA that they are made with."""
        if patches != self._patches:
            self.clear()
            self._patches = patches
        if key not in self._forms:
            while len(self._forms) >= MOST:
                del self._forms[next(iter(self._forms))]  # the one that came first
            self._forms[key] = _Form()
        return self._forms[key]


def run_graphed(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **conds):
    """The wrapper: (executor, what the host hands to apply_model) -> its result."""
    model, options = executor.class_obj, transformer_options or {}
    graphs = getattr(model, "svdquant_graphs", None)

    def as_usual():
        return executor(x, t, c_concat, c_crossattn, control, options, **conds)

    if graphs is None or why_not(model, x, control, options) is not None:
        return as_usual()
    call, tensors = [x, t, c_concat, c_crossattn, for_graph(options), conds], []
    try:
        key = split(call, tensors)
    except UnseenError as error:
        logger.debug("No CUDA graph: %s", error)
        return as_usual()
    if any(tensor.device.type not in (x.device.type, "cpu") for tensor in tensors):
        return as_usual()
    form = graphs.form(key, model.current_patcher.patches_uuid)
    if form.graph is not None:
        out = form.graph.run(model, tensors)
        if out is not None:
            return out
        form.graph, form.calls, form.lost = None, 0, form.lost + 1  # weights have moved, or are others
        form.refused = form.lost > MOST_LOST
    if form.refused or form.calls < WARM:
        return as_usual() if form.refused else form.eager(lambda _: as_usual(), call, x.device)
    out = as_usual()
    if not form.gpu_waits():
        form.refused = True
        return out

    def compute(given):
        x, t, c_concat, c_crossattn, options, conds = given
        return executor(x, t, c_concat, c_crossattn, None, for_model(options), **conds)

    form.graph = _capture(compute, call, out, model)
    form.refused = form.graph is None
    return out


def _capture(compute, call, expected: Tensor, model: Any) -> Captured | None:
    """The graph of a call, or None and a line in the log."""
    try:
        weights = Weights(model, expected.device)
        if expected.device.type == "cuda" and comfy.model_management.get_free_memory(expected.device) < ROOM:
            raise LookupError("too little memory is free")
        with weights.pinned() as there:
            if not there:
                raise LookupError("not all weights are on the card")
            graph = Captured(compute, call, expected, weights, CudaGraph)
    except (LookupError, UnequalError, WaitsError) as error:
        logger.info("Steps run without a CUDA graph: %s.", error)
        return None
    except Exception as error:  # noqa: BLE001  (what a model does while it is captured may fail in any way)
        comfy.model_management.soft_empty_cache()
        logger.info("Steps run without a CUDA graph: %s", str(error).strip().partition("\n")[0] or type(error).__name__)
        return None
    logger.info("Steps of this size now run as a CUDA graph.")
    return graph


def install_graphs(patcher) -> None:
    """Give a MODEL the wrapper; its clones inherit it."""
    patcher.model.svdquant_graphs = Graphs()
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, KEY, run_graphed)
