"""Times the paths that could compute a layer on a GPU against each other, where no table knows which is the fastest.

Each path computes the same call once beforehand, which compiles its kernels and shows whether its values are right;
then the paths take turns, and the median of a path's turns counts. One that raises, runs out of memory or computes
wrong values is out, with the reason in a sentence.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from ..gpus import generation, processors, why_no_triton
from ..ladder import logger
from ..launching.ahead import Batch, compile_ahead, threads
from ..launching.dry_run import launches_noted
from ..layer_call import Factors, LayerCall
from ..part_weights import rows_of
from . import on_cpu
from .layer_paths import PLAIN_TORCH, REFERENCE, BelowKernels, paths_for
from .path import KernelPath, Path
from .sixteen_bit import FewTokens

# Modes that may stand for w4a4 without anybody seeing it: their results are at least as close to the full-precision
# layer. Relative RMS error of a layer of 3072 inputs with normally distributed ones, bfloat16: w4a4 0.097 of INT4 and
# 0.084 of NVFP4 files, w4a8 0.009 and 0.010, w4a16 0.002 in both (a test holds the order).
AS_ACCURATE_AS_W4A4 = ("w4a4", "w4a8", "w4a16")
TURNS = 7  # at most
CHECKED_TOKENS, CHECKED_OUTPUTS = 64, 512  # of a call, against the full-precision layer
LARGEST_ERROR = 1.25  # of that of w4a4 by the reference
OUT_OF_MEMORY = "it ran out of memory"  # which may be there another time
HEAD_START = 2_000_000  # cycles of the GPU, 1 to 2 ms: launching a call takes the CPU less

Clock = Callable[[Callable[[], object]], float]  # seconds that something takes


class Entrant(NamedTuple):
    """A way to compute a layer: a mode, and one of its paths."""

    mode: str
    path: Path

    def __str__(self) -> str:
        return f"{self.mode} with {self.path.name}"


@dataclass
class ContestResult:
    """What became of a contest.

    Args:
        seconds: of each entrant that came through, median of its turns. out: why others did not.
        turning: seconds of the wall that the turns took.
    """

    seconds: dict[Entrant, float] = field(default_factory=dict)
    out: dict[Entrant, str] = field(default_factory=dict)
    turning: float = 0.0


def entrants(scheme: str, device: torch.device, dtype: torch.dtype) -> list[Entrant]:
    """Every way to compute layers of a scheme on a device that is as accurate as w4a4, in the order of the table.

    Plain torch takes part with activations as they are, and with int8 ones where no kernel can be tried: it is torch's
    int8 product that is wanted then, and everything around it moves ten times the bytes that kernels move.
    """
    kernels = why_no_triton(device) is None

    def takes_part(mode: str, path: Path) -> bool:
        if isinstance(path, BelowKernels | FewTokens) or path is REFERENCE:
            return False
        if path is PLAIN_TORCH and (mode == "w4a4" or (kernels and mode == "w4a8")):
            return False
        return path.why_not_here(device, dtype) is None

    every = [Entrant(mode, path) for mode in AS_ACCURATE_AS_W4A4 for path in paths_for(scheme, mode)]
    return [entrant for entrant in every if takes_part(*entrant)]


def gpu_seconds(device: torch.device, run: Callable[[], object]) -> float:
    """Seconds of the GPU's time that something takes; the GPU waits until it is launched."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HEAD_START)
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def compile_at_once(
    calls: Sequence[LayerCall], taking_part: Sequence[Entrant], device: torch.device, patience: float
) -> None:
    """Compile the kernels of all entrants, several at a time; what fails here fails again in the contest.

    Args:
        calls: on meta tensors. device: what will run them.
        patience: seconds after which the rest is left to the contest.
    """
    if threads() < 1 or why_no_triton(device) is not None:
        return
    done = threading.Event()
    batch = Batch("the trial of ways to compute", done.set)
    try:
        with launches_noted(generation(device), processors(device), device) as found:
            for call in calls:
                for mode, path in taking_part:
                    if isinstance(path, KernelPath):
                        with suppress(Exception):
                            path.run(replace(call, mode=mode))
        compile_ahead(found, device, batch)
    except Exception as error:  # noqa: BLE001  (kernels are then compiled one by one, where they are launched)
        logger.debug("No kernels are compiled at once: %s", error, exc_info=error)
    batch.end()
    done.wait(patience)


def contest(
    call: LayerCall,
    taking_part: Sequence[Entrant],
    clock: Clock,
    *,
    budget: float,
    patience: float,
    now: Callable[[], float] = time.perf_counter,
) -> ContestResult:
    """Time a call by every entrant.

    Args:
        call: of many tokens; its mode is each entrant's own. clock: tells the seconds of a turn.
        budget: seconds for all turns; the one under way when they are spent is the last.
        patience: seconds for what comes before, compiling most of all; who has not begun by then is out.
        now: a clock of the wall, in seconds.
    """
    outcome, started, limit = ContestResult(), now(), _largest_error(call)
    ready: dict[Entrant, Callable[[], Tensor]] = {}
    for entrant in taking_part:
        one = replace(call, mode=entrant.mode)
        why_not = entrant.path.why_not_for(one)
        if why_not is None and now() - started > patience:
            why_not = "compiling the others took too long"
        if why_not is None:
            why_not = _attempt(partial(_prepare, entrant.path, one, limit))
        if why_not is None:
            ready[entrant] = partial(entrant.path.run, one)
        else:
            outcome.out[entrant] = why_not
    started = now()
    turns = _take_turns(outcome, ready, clock, budget, now)
    outcome.turning = now() - started
    outcome.seconds = {entrant: median(found) for entrant, found in turns.items() if found}
    outcome.out |= {entrant: "no time was left for it" for entrant, found in turns.items() if not found}
    return outcome


def _take_turns(
    outcome: ContestResult,
    ready: Mapping[Entrant, Callable[[], object]],
    clock: Clock,
    budget: float,
    now: Callable[[], float],
) -> dict[Entrant, list[float]]:
    """Seconds of each turn of those who fail in none; nobody begins a turn when the budget is spent."""
    started, turns = now(), {entrant: [] for entrant in ready}
    for entrant in [entrant for _ in range(TURNS) for entrant in ready]:
        if now() - started > budget:
            break
        if entrant not in turns:
            continue
        why_not = _attempt(lambda e=entrant: turns[e].append(clock(ready[e])))
        if why_not is not None:
            outcome.out[entrant] = why_not
            del turns[entrant]
    return turns


def _attempt(action: Callable[[], object]) -> str | None:
    """Why something failed, in words, None if it did not."""
    try:
        found = action()
    except Exception as error:  # noqa: BLE001  (kernels fail in any way; what they said is told)
        if "out of memory" in str(error).lower() or isinstance(error, torch.cuda.OutOfMemoryError):
            return OUT_OF_MEMORY
        lines = str(error).strip().splitlines()
        return f"it failed ({type(error).__name__}{': ' + lines[0] if lines else ''})"
    return found if isinstance(found, str) else None


def _prepare(path: Path, call: LayerCall, limit: float) -> str | None:
    """Run a path for the first time; why it is out if its values are wrong."""
    error = _error_of(path.run(call)[:CHECKED_TOKENS, :CHECKED_OUTPUTS], call)
    return None if error <= limit else f"it computes wrong values (error {error:.2g}, and {limit:.2g} is allowed)"


def _corner(call: LayerCall) -> LayerCall:
    """The first tokens and outputs of a call."""
    rows = slice(0, CHECKED_OUTPUTS)
    tensors = {**call.tensors, **rows_of(call.tensors, call.scheme, rows)}
    tensors.pop("channel_scales", None)
    factors, bias = Factors(call.branch.down, call.branch.up[rows]), None if call.bias is None else call.bias[rows]
    return replace(call, x=call.x[:CHECKED_TOKENS], tensors=tensors, factors=factors, bias=bias)


def _full_precision(call: LayerCall) -> Tensor:
    corner = _corner(call)
    return on_cpu.compute(replace(corner, x=corner.x.float(), mode="w4a16"))


def _error_of(corner: Tensor, call: LayerCall) -> float:
    exact = _full_precision(call)
    return float((corner.float() - exact).norm() / exact.norm())


def _largest_error(call: LayerCall) -> float:
    """How far a call's first results may be from the full-precision layer's."""
    w4a4 = on_cpu.compute(replace(_corner(call), mode="w4a4"))
    return LARGEST_ERROR * _error_of(w4a4, call)
