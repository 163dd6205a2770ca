"""How long each stage of a quantization run takes: functions of the pack are timed where they are called.

The GPU is waited for before and after each, so a stage holds what it started; what one stage spends in another counts
for the other, except that the smoothing search is one stage. That makes the run itself a little slower than without.
Packing and writing layers goes on in a thread beside all this; only waiting for it takes time of its own.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from svdquant_pack.svdq_core.checkpoint import save
from svdquant_pack.svdq_core.quantize import block_weights, fit, problem
from svdquant_pack.svdq_core.quantize import one_layer as layer
from svdquant_pack.svdq_core.quantize import to_file as run
from svdquant_pack.svdq_core.quantize import whole_model as model

SEARCH = "smoothing search"
# stage -> what belongs to it
STAGES = {
    "inputs from running the model on noise": ((model, "_draw_inputs"),),
    "reading weights, moving them to the GPU": ((block_weights.BlockWeights, "__getitem__"),),
    "reading recorded inputs, moving them to the GPU": ((layer, "_complete"),),
    SEARCH: ((layer, "_choose_shared_factor"),),
    "factoring Hessians": ((layer, "_factor_hessian"),),
    "singular value decompositions": ((problem.Problem, "decompose"),),
    "group scales": ((fit, "fit_scales"),),
    "rounding to nearest": ((fit, "round_to_units"),),
    "GPTQ": ((fit, "round_gptq"),),
    "refitting the branch (without its decomposition)": ((fit, "_fit_branch"),),
    "measuring the error of each turn": ((problem.Problem, "squared_error"),),
    "modulation layers": ((layer, "_quantize_awq"),),
    "putting the file together": ((run, "_put_together"),),
    "waiting for the disk (fsync)": ((save.os, "fsync"),),
}


class Stages:
    """Seconds by stage."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._inner: list[float] = []  # time that stages within the open ones took

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time what runs meanwhile."""
        originals = [(owner, name, getattr(owner, name)) for places in STAGES.values() for owner, name in places]
        for stage, places in STAGES.items():
            for owner, name in places:
                setattr(owner, name, self._wrap(stage, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)

    def _wrap(self, stage: str, function: Callable) -> Callable:
        def timed(*arguments, **keywords):
            if SEARCH in self._open:
                return function(*arguments, **keywords)
            self._wait()
            started = time.perf_counter()
            self._open.append(stage)
            self._inner.append(0.0)
            try:
                return function(*arguments, **keywords)
            finally:
                self._wait()
                self._open.pop()
                spent = time.perf_counter() - started
                self.seconds[stage] += spent - self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent

        return timed

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
