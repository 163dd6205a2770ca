"""recording: torch's operations that are noted, and called again. Launches: test_replay.py."""

import gc

import pytest
import torch
from recorded_calls import replayed
from torch.multiprocessing.reductions import StorageWeakRef

from svdquant_pack.kernels.launching import replay
from svdquant_pack.kernels.launching.recording import Recorder, Write
from svdquant_pack.kernels.step.fragments import to_activation_fragments, to_weight_fragments

pytestmark = pytest.mark.usefixtures("recordings_on_the_cpu")


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("order", [to_activation_fragments, to_weight_fragments])
def test_codes_in_the_order_of_int4_tensor_cores(order, inference):
    """The way of RTX 30 and 40 cards, which no other test records on a CPU."""
    codes = torch.randint(-128, 127, (32, 64), dtype=torch.int16).to(torch.int8)
    with torch.inference_mode(inference), Recorder() as recorder:
        order(codes)
    assert recorder.complete
    assert [type(step) for step in recorder.steps] == [Write]


class TorchLayer:
    """gelu(x @ weight.T + bias) + x, twice the width, by operations that write where they are told; runs are counted.

    The blob holds weight and bias as bytes.
    """

    def __init__(self, K=8):
        self.runs, self.K = 0, K

    def draw(self, rows):
        wide = torch.randn(rows, 2 * self.K)
        return wide[:, self.K :], torch.randn(self.K * self.K + self.K).view(torch.uint8)

    def expected(self, x, blob):
        weight, bias = blob.view(torch.float32).split([self.K**2, self.K])
        value = torch.nn.functional.linear(x, weight.view(self.K, self.K), bias)
        return torch.cat((torch.nn.functional.gelu(value, approximate="tanh") + x, x), dim=1)

    def __call__(self, x, blob, more=lambda: None):
        def compute():
            self.runs += 1
            more()
            weight, bias = blob.view(torch.float32).split([self.K**2, self.K])
            scratch = torch.empty(x.shape[0], 3 * self.K)
            value, out = scratch[:, self.K : 2 * self.K], torch.empty(x.shape[0], 2 * self.K)
            torch.addmm(bias, x, weight.view(self.K, self.K).T, out=value)
            left = torch.ops.aten.gelu.out(value, approximate="tanh", out=torch.empty_like(value))
            out[:, self.K :].copy_(x)
            out[:, : self.K].copy_(left)
            out[:, : self.K].add_(x)
            return out

        return replayed("torch", (x, blob), compute)


@pytest.mark.parametrize("inference", [False, True])
def test_operations_that_write_where_they_are_told_are_called_again(inference):
    layer = TorchLayer()
    with torch.inference_mode(inference):
        made = [layer.draw(5) for _ in range(3)]
        results = [layer(*one) for one in made]
        for out, one in zip(results, made, strict=True):
            torch.testing.assert_close(out, layer.expected(*one))
    assert layer.runs == 1


@pytest.fixture
def failing(monkeypatch):
    """Lets one of torch's operations in a recording raise an error of the class given."""

    def fail(error):
        def function(*_arguments, **_options):
            raise error("out of something")

        (recording,) = replay._thread.known.values()
        monkeypatch.setattr(recording.steps[1], "_function", function)

    return fail


@pytest.mark.parametrize("error", [None, torch.cuda.OutOfMemoryError, RuntimeError])
def test_a_recording_keeps_no_tensor(error, failing):
    layer, kept = TorchLayer(), []
    for turn in range(3):
        if turn == 1 and error is not None:
            failing(error)
        x, blob = layer.draw(5)
        out = layer(x, blob)
        kept += [StorageWeakRef(t.untyped_storage()) for t in (x, blob, out)]
        del x, blob, out
    gc.collect()
    assert all(storage.expired() for storage in kept)


@pytest.mark.parametrize(("error", "recorded"), [(torch.cuda.OutOfMemoryError, True), (RuntimeError, False)])
def test_a_recorded_call_that_fails_runs_as_usual(error, recorded, failing):
    layer = TorchLayer()
    layer(*layer.draw(5))
    failing(error)
    made = layer.draw(5)
    torch.testing.assert_close(layer(*made), layer.expected(*made))
    assert layer.runs == 2 and not replay._refused
    assert isinstance(*replay._thread.known.values(), replay.Replay) == recorded


def test_a_recording_that_found_no_memory_is_not_tried_in_every_call(monkeypatch):
    """Each try would have the allocator give back its whole cache."""
    monkeypatch.setattr(replay, "PAUSE", 5)
    layer, tries = TorchLayer(), []

    def full(*_arguments, **_options):
        tries.append(layer.runs)
        raise torch.cuda.OutOfMemoryError("out of memory")

    layer(*layer.draw(5))
    (recording,) = replay._thread.known.values()
    works = recording.steps[1]._function
    monkeypatch.setattr(recording.steps[1], "_function", full)
    for _ in range(13):
        made = layer.draw(5)
        torch.testing.assert_close(layer(*made), layer.expected(*made))
    assert len(tries) == 3 and layer.runs == 14
    monkeypatch.setattr(recording.steps[1], "_function", works)
    for _ in range(10):
        layer(*layer.draw(5))
    assert layer.runs < 24, "with memory again, it is issued again"
