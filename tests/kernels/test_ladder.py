"""descend: the first step that works, one log line a reason, memory errors passed on."""

import logging

import pytest
import torch

from svdquant_pack.kernels import ladder
from svdquant_pack.kernels.ladder import descend, say_once

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(ladder, "_broken", set())
    monkeypatch.setattr(ladder, "_said", set())


def step(name, result=None, error=None, calls=None):
    def compute():
        if calls is not None:
            calls.append(name)
        if error:
            raise error
        return torch.tensor(result)

    return name, compute


def test_the_first_step_that_works_is_taken():
    assert descend(CPU, [step("fast", 1), step("slow", 2)]) == 1


def test_a_broken_step_is_tried_once_and_reported_once(caplog):
    calls = []
    steps = [step("fast", error=RuntimeError("no compiler\nlong trace"), calls=calls), step("slow", 2)]
    with caplog.at_level(logging.WARNING, logger="svdquant"):
        assert descend(CPU, steps) == 2
        assert descend(CPU, steps) == 2
    assert calls == ["fast"]
    assert [record.message for record in caplog.records] == [
        "fast does not work on cpu (RuntimeError: no compiler); using slow instead."
    ]


def test_steps_are_given_up_one_by_one():
    steps = [step("a", error=OSError("x")), step("b", error=AttributeError("y")), step("c", 3)]
    assert descend(CPU, steps) == 3


def test_running_out_of_memory_is_no_reason_to_step_down():
    with pytest.raises(torch.cuda.OutOfMemoryError):
        descend(CPU, [step("fast", error=torch.cuda.OutOfMemoryError("full")), step("slow", 2)])
    assert not ladder._broken


OUT_OF_MEMORY = [
    "Triton Error [CUDA]: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "HIP error: hipErrorOutOfMemory",
]


@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_memory_that_others_than_torch_miss_is_given_back_and_the_step_tried_again(message, monkeypatch):
    calls, freed = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))

    def fast():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError(message)
        return "fast"

    assert descend(CPU, [("fast", fast), ("slow", lambda: "slow")]) == "fast"
    assert calls == [1, 1] and freed == [1] and not ladder._broken


@pytest.mark.parametrize("steps_below", [0, 1])
@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_memory_that_stays_short_is_torchs_own_error(message, steps_below):
    steps = [step("fast", error=RuntimeError(message)), step("slow", 2)][: 1 + steps_below]
    with pytest.raises(torch.cuda.OutOfMemoryError, match="fast on cpu"):
        descend(CPU, steps)
    assert not ladder._broken


def test_scratch_memory_of_the_try_before_is_gone_in_the_next():
    alive = []

    class Scratch:
        def __init__(self):
            alive.append(self)

    def fast():
        import weakref

        scratch = Scratch()
        reference = weakref.ref(alive.pop())
        if not seen:
            seen.append(reference)
            raise RuntimeError("out of memory")
        assert seen[0]() is None
        return scratch is not None

    seen = []
    assert descend(CPU, [("fast", fast), ("slow", lambda: None)])


def test_what_a_capture_forbids_is_the_callers_to_know():
    message = "CUDA error: operation not permitted when stream is capturing"
    with pytest.raises(RuntimeError, match="capturing"):
        descend(CPU, [step("fast", error=RuntimeError(message)), step("slow", 2)])
    assert not ladder._broken


def test_the_last_step_raises():
    with pytest.raises(ValueError, match="wrong shape"):
        descend(CPU, [step("fast", error=ValueError("a")), step("slow", error=ValueError("wrong shape"))])


def test_the_same_line_is_said_once(caplog):
    with caplog.at_level(logging.INFO, logger="svdquant"):
        say_once("%s runs in plain torch", "w4a8")
        say_once("%s runs in plain torch", "w4a8")
        say_once("%s runs in plain torch", "w4a4")
    assert len(caplog.records) == 2


def test_nothing_is_given_up_while_a_cuda_graph_is_captured(monkeypatch):
    monkeypatch.setattr(ladder, "_is_capturing", lambda device: True)
    steps = [
        step("fast", error=ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")),
        step("slow", 2),
    ]
    with pytest.raises(ValueError, match="Pointer argument"):
        descend(CPU, steps)
    assert not ladder._broken
    monkeypatch.undo()
    monkeypatch.setattr(ladder, "_broken", set())
    assert not ladder._is_capturing(CPU)
