"""replay: recorded launches find other tensors' addresses; whatever cannot be recorded runs as usual, every time.

The launches here are played by a function on the CPU that reads and writes at the addresses it is given.
"""

import ctypes

import pytest
import torch
from recorded_calls import replayed

from svdquant_pack.kernels import ladder
from svdquant_pack.kernels.launching import placed, replay
from svdquant_pack.kernels.launching.recording import Recorder, note_launch


class AddKernel:
    """A compiled kernel: out[i] = left[i] + right[i] + constant, int32."""

    function, packed_metadata = 1, ()

    def run(self, grid_x, _y, _z, stream, _function, _packed, _metadata, _enter, _exit, left, right, out, constant):
        assert stream == 7
        left, right, out = (self._at(p, grid_x) for p in (left, right, out))
        for i in range(grid_x):
            out[i] = left[i] + (right[i] if right else 0) + constant

    def _at(self, pointer, count):
        address = (
            pointer.data_ptr()
            if hasattr(pointer, "data_ptr")
            else pointer.base.data_ptr()
            if hasattr(pointer, "base")
            else pointer
        )
        return (ctypes.c_int32 * count).from_address(address) if address else None

    def launch(self, count, *arguments):
        self.run(count, 1, 1, 7, 1, (), None, None, None, *arguments)
        note_launch(self, (count, 1, 1), arguments[:3], arguments[3:])


class Descriptor:
    def __init__(self, base):
        self.base = base


KERNEL = AddKernel()
pytestmark = pytest.mark.usefixtures("recordings_on_the_cpu")


def numbers(count=8, rows=1):
    return torch.randint(-99, 99, (rows, count), dtype=torch.int32)


class Layer:
    """x + blob[4:] in two launches, counted."""

    def __init__(self):
        self.runs = 0

    def __call__(self, x, blob, situation="layer", more=lambda: None):
        def compute():
            self.runs += 1
            more()
            scratch, out = torch.empty_like(x), torch.empty_like(x)
            KERNEL.launch(x.numel(), x, None, scratch, 1)
            KERNEL.launch(x.numel(), Descriptor(scratch), blob[4 : 4 + x.numel()], out, 2)
            return out

        return replayed(situation, (x, blob, None), compute)


def expected(x, blob):
    return x + blob[4 : 4 + x.numel()] + 3


def test_other_tensors_are_found_again():
    layer, kept = Layer(), []
    for _ in range(4):
        x, blob = numbers(), numbers(20)[0]
        kept.append((layer(x, blob), x, blob))
    assert layer.runs == 1
    for out, x, blob in kept:  # results of earlier calls are not written over
        assert torch.equal(out, expected(x, blob))


def test_a_call_may_have_several_results():
    runs = 0

    def add(x, constant):
        nonlocal runs
        done = replay.replay("several", (x,))
        if isinstance(done, tuple):
            return done
        assert isinstance(done, replay.Call)
        with done as call:
            runs += 1
            first, second = torch.empty_like(x), torch.empty(2, x.numel(), dtype=torch.int32)
            KERNEL.launch(x.numel(), x, None, first, constant)
            KERNEL.launch(x.numel(), first, x, second[1], constant)
            KERNEL.launch(x.numel(), first, None, second[0], constant)
            call.result = first, second
        return call.result

    for _ in range(3):
        x = numbers()
        first, second = add(x, 4)
        assert torch.equal(first, x + 4)
        assert torch.equal(second, torch.stack(((x + 8)[0], (2 * x + 8)[0])))
    assert runs == 1


def test_another_shape_or_situation_is_recorded_by_itself():
    layer, blob = Layer(), numbers(40)[0]
    for x in (numbers(8), numbers(16), numbers(8), numbers(16)):
        assert torch.equal(layer(x, blob), expected(x, blob))
    assert layer.runs == 2
    layer(numbers(8), blob, situation="another")
    assert layer.runs == 3


@pytest.mark.parametrize("inference", [False, True])
def test_views_and_conversions_to_what_it_is_are_no_computation(inference):
    layer, blob = Layer(), numbers(20)[0]

    def look():
        view = blob[4:].reshape(2, 8).view(torch.int8).to(torch.int8).contiguous()
        view.split(1), view.unflatten(0, (1, 2)), view.T, blob.new_empty(3), torch.empty_like(blob)

    with torch.inference_mode(inference):
        for _ in range(3):
            x = numbers()
            assert torch.equal(layer(x, blob, more=look), expected(x, blob))
    assert layer.runs == 1


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "compute", [lambda t: t.view(4, 5).T.reshape(-1), lambda t: t.clone().add_(1), lambda t: t.float()]
)
def test_copies_are_computation(compute, inference):
    layer, blob = Layer(), numbers(20)[0]
    with torch.inference_mode(inference):
        for _ in range(2):
            layer(numbers(), blob, more=lambda: compute(blob))
    assert layer.runs == 2


def test_a_call_that_computes_by_torch_is_not_recorded():
    layer, blob = Layer(), numbers(20)[0]
    for _ in range(5):
        x = numbers()
        assert torch.equal(layer(x, blob, more=lambda: blob + 1), expected(x, blob))
    assert layer.runs == 5


@pytest.mark.parametrize("part", ["rows of more", "a source"])
def test_a_result_that_is_not_all_of_a_new_tensor_is_not_recorded(part):
    runs = 0
    for _ in range(4):
        x = numbers()

        def compute(x=x):
            nonlocal runs
            runs += 1
            out = torch.empty(2, 8, dtype=torch.int32)[:1] if part == "rows of more" else x
            KERNEL.launch(x.numel(), x, None, out, 1)
            return out

        wanted = x + 1
        assert torch.equal(replayed("part", (x,), compute), wanted)
    assert runs == 4


def test_a_tensor_from_elsewhere_is_never_taken_for_scratch():
    kept, layer = numbers(), Layer()
    for _ in range(5):
        kept = torch.randint_like(kept, 99)
        x, blob = numbers(), numbers(20)[0]
        out = torch.empty_like(x)

        def use(x=x, out=out, kept=kept):
            KERNEL.launch(x.numel(), x, kept, out, 0)

        assert torch.equal(layer(x, blob, more=use), expected(x, blob))
        assert torch.equal(out, x + kept)
    assert layer.runs == 5


def test_a_launch_that_cannot_be_repeated_is_not_recorded():
    layer, x, blob = Layer(), numbers(), numbers(20)[0]
    for _ in range(2):
        layer(x, blob, more=lambda: note_launch(None, (), (), ()))
    assert layer.runs == 2


def test_a_call_that_steps_down_is_recorded_the_next_time(monkeypatch):
    layer, blob = Layer(), numbers(20)[0]
    monkeypatch.setattr(ladder, "_broken", set())
    for _ in range(3):
        x = numbers()
        assert torch.equal(layer(x, blob, more=lambda: ladder._broken.add(("cpu", "step"))), expected(x, blob))
    assert layer.runs == 2


def test_addresses_that_kernels_were_not_compiled_for_run_as_usual():
    layer, blob = Layer(), numbers(20)[0]
    layer(numbers(), blob)
    odd = torch.empty(9, dtype=torch.int32)[1:].view(1, 8).copy_(numbers())
    assert odd.data_ptr() % 16
    assert torch.equal(layer(odd, blob), expected(odd, blob)) and layer.runs == 2


def test_a_triton_that_refuses_is_not_asked_again(monkeypatch):
    layer, blob = Layer(), numbers(20)[0]
    layer(numbers(), blob)

    class Refusal:
        pause = 0

        def __call__(self, sources):
            raise TypeError("takes 9 arguments")

    monkeypatch.setattr(replay, "Replay", Refusal)
    known = replay._thread.known
    known.update(dict.fromkeys(known, Refusal()))
    for _ in range(3):
        x = numbers()
        assert torch.equal(layer(x, blob), expected(x, blob))
    assert layer.runs == 4 and len(replay._refused) == 1


def test_recordings_do_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(replay, "LARGEST_COUNT", 3)
    layer, blob = Layer(), numbers(20)[0]
    for i in range(10):
        layer(numbers(), blob, situation=i)
    assert len(replay._thread.known) <= 3


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(replay, "RECORDS", False)
    assert not replay.records_on(torch.device("cuda", 0))
    assert not replay.records_on(torch.device("cpu"))


@pytest.mark.parametrize("first", ["wide", "narrow"])
def test_rows_of_one_source_may_lie_between_those_of_another(first):
    """As a single block's attention and MLP may, if a patch gives a part of linear1's result as attention."""
    whole = torch.zeros(4, 24, dtype=torch.int16)
    narrow, wide = whole[:, :8], whole[:, 8:]
    given = (wide, narrow) if first == "wide" else (narrow, wide)
    places = placed.Places(Recorder(), given)
    for i, source in enumerate(given):
        assert places.of(source) == (i, 0)
        assert places.of(source[:, 4:]) == (i, 8)
