"""Progress over layers: names, seconds from what was done, layers of an earlier run, cancel."""

import comfy.model_management
import pytest
import server
from comfy_execution.utils import CurrentNodeContext

from svdquant_pack.nodes.host.quantize import layer_progress
from svdquant_pack.nodes.host.quantize.layer_progress import LayerProgress

SIZES = {"a": 10.0, "b": 10.0, "c": 30.0, "d": 50.0}


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test turns."""
    now = [0.0]
    monkeypatch.setattr(layer_progress.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def texts(host, monkeypatch):
    """What is shown below node 7."""
    shown = []
    monkeypatch.setattr(
        server.PromptServer.instance, "send_progress_text", lambda text, node: shown.append((node, text)), raising=False
    )
    with CurrentNodeContext("prompt", "7"):
        yield shown


def test_seconds_are_worked_out_from_sizes(clock, texts):
    progress = LayerProgress(SIZES)
    clock[0] = 2.0
    progress.step(1, 4, "a")
    clock[0] = 4.0
    progress.step(2, 4, "b")
    clock[0] = 10.0
    progress.step(3, 4, "c")
    clock[0] = 20.0
    progress.step(4, 4, "d")
    assert texts == [
        ("7", "a (1 of 4), 18 s left"),
        ("7", "b (2 of 4), 16 s left"),
        ("7", "c (3 of 4), 10 s left"),
        ("7", "d (4 of 4), 0 s left"),
    ]


def test_layers_of_an_earlier_run_cost_nothing(clock, texts):
    progress = LayerProgress(SIZES)
    clock[0] = 3.0
    progress.step(3, 4, "c")  # a and b were there
    assert texts == [("7", "c (3 of 4), 5 s left")]


def test_long_waits_are_minutes(clock, texts):
    progress = LayerProgress(SIZES)
    clock[0] = 60.0
    progress.step(1, 4, "a")
    assert texts == [("7", "a (1 of 4), 9 min left")]


def test_the_page_is_not_flooded(clock, texts):
    progress = LayerProgress({str(number): 1.0 for number in range(100)})
    for number in range(100):
        clock[0] += 0.01
        progress.step(number + 1, 100, str(number))
    assert 4 <= len(texts) <= 7 and texts[-1][1].startswith("99 (100 of 100)")


def test_cancel(clock, texts, monkeypatch):
    def cancelled():
        raise comfy.model_management.InterruptProcessingException()

    progress = LayerProgress(SIZES)
    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", cancelled)
    for call in (LayerProgress.poll, lambda: progress.step(1, 4, "a")):
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            call()


def test_older_hosts_and_calls_outside_of_a_graph(clock, host):
    LayerProgress(SIZES).step(4, 4, "d")
