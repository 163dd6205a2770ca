"""Kernels compiled in the background: in order, each once, and no launch waits for more than its own."""

import logging
import re
import threading

import pytest
import torch

pytest.importorskip("triton")

from svdquant_pack.kernels.launching import ahead
from svdquant_pack.kernels.launching.dry_run import Wanted

DEVICE = torch.device("meta")
LIMIT = 20  # seconds until a test gives up


class Kernel:
    """Takes as long to compile as it is told to.

    Args:
        ready: compiling ends once it is set.
    """

    def __init__(self, name: str, compiled: list[str], ready: threading.Event | None = None):
        self.name, self.compiled, self.ready, self.begun = name, compiled, ready, threading.Event()

    def warmup(self, *_arguments, grid, **constants):
        assert grid == (1,)
        self.begun.set()
        if self.ready is not None:
            assert self.ready.wait(LIMIT)
        self.compiled.append(self.name)
        if constants.get("FAIL"):
            raise RuntimeError("PassManager::run failed")


def wanted(*kernels: Kernel, **constants) -> dict[tuple, Wanted]:
    return {(kernel.name,): Wanted(kernel, (), constants) for kernel in kernels}


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch):
    monkeypatch.setattr(ahead, "threads", lambda: 1)
    yield
    for thread in list(ahead._working):
        thread.join(LIMIT)
    assert not ahead._jobs and not ahead._working


def start(kernels: dict[tuple, Wanted]) -> threading.Event:
    """Begin to compile; the event is set when all is done."""
    ended = threading.Event()
    batch = ahead.Batch("a GPU", ended.set)
    ahead.compile_ahead(kernels, DEVICE, batch)
    batch.end()
    return ended


def test_each_is_compiled_once_in_order():
    compiled, hold = [], threading.Event()
    a, b, c = (Kernel(name, compiled, hold) for name in "abc")
    first = start(wanted(a, b))
    second = start(wanted(b, c))  # of another model
    hold.set()
    assert first.wait(LIMIT) and second.wait(LIMIT)
    assert compiled == ["a", "b", "c"]


def test_a_launch_waits_for_what_is_being_compiled_and_takes_over_what_is_not():
    compiled, hold = [], threading.Event()
    a, b = Kernel("a", compiled, hold), Kernel("b", compiled)
    ended = start(wanted(a, b))
    assert a.begun.wait(LIMIT)
    ahead.wait_for(("b",))  # at once: the launch compiles it itself
    assert not compiled and not ended.is_set()
    launch = threading.Thread(target=ahead.wait_for, args=(("a",),))
    launch.start()
    launch.join(0.1)
    assert launch.is_alive()
    hold.set()
    launch.join(LIMIT)
    assert not launch.is_alive() and ended.wait(LIMIT)
    assert compiled == ["a"], "b was left to its launch"
    ahead.wait_for(("unknown",))


def test_what_does_not_compile_holds_nothing_up():
    compiled = []
    ended = start(wanted(Kernel("a", compiled), FAIL=True) | wanted(Kernel("b", compiled)))
    assert ended.wait(LIMIT)
    assert compiled == ["a", "b"]
    ahead.wait_for(("a",))


def test_a_cache_that_cannot_be_written_to_ends_no_thread():
    def refuse() -> None:
        raise PermissionError("read-only file system")

    compiled = []
    batch = ahead.Batch("a GPU", refuse)
    ahead.compile_ahead(wanted(Kernel("a", compiled)), DEVICE, batch)
    batch.end()
    assert start(wanted(Kernel("b", compiled))).wait(LIMIT)
    assert compiled == ["a", "b"]


def test_nothing_new_is_compiled_when_the_program_ends(monkeypatch):
    compiled, hold = [], threading.Event()
    a, b = Kernel("a", compiled, hold), Kernel("b", compiled)
    ended = start(wanted(a, b))
    assert a.begun.wait(LIMIT)
    ending = threading.Thread(target=lambda: None)  # one that is not alive
    monkeypatch.setattr(ahead.threading, "main_thread", lambda: ending)
    hold.set()
    for thread in list(ahead._working):
        thread.join(LIMIT)
    assert compiled == ["a"] and not ended.is_set()


def test_it_is_said_where_it_takes_long(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "svdquant")
    monkeypatch.setattr(ahead, "LONG", float(LIMIT))
    assert start(wanted(Kernel("a", []))).wait(LIMIT)
    assert not caplog.messages
    monkeypatch.setattr(ahead, "LONG", 0.0)
    assert start(wanted(Kernel("a", []), Kernel("b", []))).wait(LIMIT)
    first, last = caplog.messages
    assert first == "Compiling kernels for a GPU in the background, 1 at a time; they are kept on disk."
    assert re.fullmatch(r"Compiled 2 kernels in \d+\.\d s\.", last)


@pytest.mark.parametrize(("processors", "expected"), [(1, 0), (2, 1), (4, 3), (64, 8)])
def test_a_processor_is_left_to_the_program(processors, expected, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(ahead.os, "sched_getaffinity", lambda _pid: set(range(processors)), raising=False)
    assert ahead.threads() == expected
    monkeypatch.setenv(ahead.SWITCH, "0")
    assert ahead.threads() == 0
