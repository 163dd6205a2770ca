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


def test_the_last_step_raises():
    with pytest.raises(ValueError, match="wrong shape"):
        descend(CPU, [step("fast", error=ValueError("a")), step("slow", error=ValueError("wrong shape"))])


def test_the_same_line_is_said_once(caplog):
    with caplog.at_level(logging.INFO, logger="svdquant"):
        say_once("%s runs in plain torch", "w4a8")
        say_once("%s runs in plain torch", "w4a8")
        say_once("%s runs in plain torch", "w4a4")
    assert len(caplog.records) == 2
