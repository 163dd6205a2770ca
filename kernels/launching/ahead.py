"""Kernels compiled in the background, several at a time, before a launch asks for them.

In threads of this process, not in processes of their own: Triton lets go of Python's lock where it optimizes and
assembles, what is compiled needs no way back, and there is nothing to start, to import a second time or to leave
behind. Code is not loaded onto the GPU here, which a CUDA graph that is captured meanwhile would not survive.

A launch that finds its kernel being compiled waits for it; one whose kernel has not had its turn compiles it itself.
So whatever goes wrong here, a launch does what it would have done anyway. Nothing is started at import.
"""

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress

import torch

from ..ladder import logger, say_once
from .dry_run import Wanted

SWITCH = "SVDQUANT_COMPILE_AHEAD"  # environment: 0 compiles nothing before it is launched
MOST_THREADS = 8
_NOTE = "svdquant_compiled.txt"
LONG = 0.3  # seconds of one kernel from which on compiling is worth a line in the log


class Batch:
    """Kernels that one model wants.

    Args:
        title: of the GPU. on_end: called once all of them were compiled, or could not be.
    """

    def __init__(self, title: str, on_end: Callable[[], object]):
        self.title, self._on_end = title, on_end
        self.left, self.count, self._said = 1, -1, False  # the plan itself is the first that has to be done
        self._started = time.perf_counter()

    def end(self) -> None:
        """No more kernels are added."""
        with _lock:
            self.note(0.0)

    def note(self, seconds: float) -> None:
        """One kernel is done; the first that took long announces the others, the last says how long they took."""
        self.left, self.count = self.left - 1, self.count + 1
        if seconds >= LONG and not self._said:
            self._said = True
            words = "Compiling kernels for %s in the background, %d at a time; they are kept on disk."
            logger.info(words, self.title, threads())
        if not self.left:
            if self._said:
                logger.info("Compiled %d kernels in %.1f s.", self.count, time.perf_counter() - self._started)
            try:
                self._on_end()
            except OSError as error:  # a cache that cannot be written to
                logger.debug("It is not noted what has been compiled: %s", error)


class _Job:
    __slots__ = ("batch", "device", "done", "started", "wanted")

    def __init__(self, wanted: Wanted, device: torch.device, batch: Batch):
        self.wanted, self.device, self.batch = wanted, device, batch
        self.started, self.done = False, threading.Event()


_lock = threading.Lock()
_jobs: dict[tuple, _Job] = {}  # by launch_key; until they are done
_waiting: deque[tuple] = deque()
_working: set[threading.Thread] = set()


def threads() -> int:
    """How many kernels are compiled at a time: one processor is left to the rest of the program; 0: none ahead."""
    if os.environ.get(SWITCH) == "0":
        return 0
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, count - 1)


def compile_ahead(wanted: Mapping[tuple, Wanted], device: torch.device, batch: Batch) -> None:
    """Line up kernels to be compiled, behind those that wait already.

    Args:
        wanted: launches by key, of dry_run.launches_noted. device: the GPU that its meta tensors stand for.
    """
    with _lock:
        for key, one in wanted.items():
            if key not in _jobs:
                _jobs[key] = _Job(one, device, batch)
                _waiting.append(key)
                batch.left += 1
        for _ in range(min(threads(), len(_waiting)) - len(_working)):
            thread = threading.Thread(target=_work, name="svdquant-compile")
            _working.add(thread)
            thread.start()


def wait_for(key: tuple) -> None:
    """Return once the kernel of a launch is compiled, or at once if nobody is at it."""
    if not _jobs:
        return
    with _lock:
        job = _jobs.get(key)
        if job is None:
            return
        if not job.started:  # the launch compiles it itself
            job.started = True
            _finish(key, job, 0.0)
            return
    if not job.done.wait(LONG):
        say_once("Waiting for kernels that are being compiled in the background; later steps will not wait.")
        job.done.wait()


def _finish(key: tuple, job: _Job, seconds: float) -> None:
    del _jobs[key]
    job.done.set()
    job.batch.note(seconds)


def _next() -> tuple[tuple, _Job] | None:
    """What comes next; None for a thread that is not needed any more, or when the program ends."""
    with _lock:
        while _waiting:
            key = _waiting.popleft()
            job = _jobs.get(key)
            if job is None or job.started:
                continue
            if threading.main_thread().is_alive():
                job.started = True
                return key, job
            del _jobs[key]
        _working.discard(threading.current_thread())
        return None


def _work() -> None:
    while (found := _next()) is not None:
        key, job = found
        start = time.perf_counter()
        try:
            _compile(job.wanted, job.device)
        except BaseException as error:  # noqa: BLE001  (the launch will meet it again, and knows what to do)
            logger.debug("A kernel could not be compiled ahead: %s", error)
        with _lock:
            _finish(key, job, time.perf_counter() - start)


def _compile(wanted: Wanted, device: torch.device) -> None:
    from triton.runtime import driver

    kernel, arguments, constants = wanted
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # a thread begins on the first GPU
        compiled = kernel.warmup(*arguments, grid=(1,), **constants)
        with suppress(Exception):  # before Triton 3.7 a launcher is C that has to be compiled as well
            driver.active.launcher_cls(compiled.src, compiled.metadata)  # pyright: ignore[reportAttributeAccessIssue]


def _manager(digest: str):
    import triton
    from triton.runtime.cache import get_cache_manager

    return get_cache_manager(hashlib.sha256(f"{triton.__version__} {digest}".encode()).hexdigest())


def was_compiled(digest: str) -> bool:
    """Whether note_compiled was told of it; what it keeps lies in Triton's cache, and is gone when kernels are."""
    return _manager(digest).get_file(_NOTE) is not None


def note_compiled(digest: str) -> None:
    """Note that all kernels of a plan lie in the cache of the Triton that is installed; digest: a hash of the plan."""
    _manager(digest).put("", _NOTE, binary=False)
