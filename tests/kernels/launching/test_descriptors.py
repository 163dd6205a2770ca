"""Descriptors made once for an address: the launcher gets the same, and a Triton that works otherwise is left alone."""

from types import SimpleNamespace

import pytest
import torch
from recorded_calls import replayed

from svdquant_pack.kernels.launching import placed, replay
from svdquant_pack.kernels.launching.descriptors import unwrap
from svdquant_pack.kernels.launching.recording import note_launch

driver = pytest.importorskip("triton.backends.nvidia.driver")
pytestmark = pytest.mark.usefixtures("recordings_on_the_cpu")
SIGNATURE = {"x": "tensordesc<i32[8]>", "n": "i32", "y": "tensordesc<i32[8]>", "out": "*i32"}


class Descriptor:
    """As Triton's: where a tensor is, and how it lies."""

    def __init__(self, base, name):
        self.base, self.name, self.shape, self.strides = base, name, [8], [1]


class Compiled:
    """A compiled kernel behind Triton's own wrapper, which notes what reaches its launcher, and makes no GPU memory."""

    function, packed_metadata = 1, ()

    def __init__(self, monkeypatch, metadata=("of x", "of y")):
        self.made, self.launched = [], []

        def make_tensordesc_arg(descriptor, metadata):
            self.made.append((descriptor.name, metadata, descriptor.base.data_ptr()))
            return [("map", *self.made[-1]), *descriptor.shape, *descriptor.strides]

        monkeypatch.setattr(driver, "make_tensordesc_arg", make_tensordesc_arg)
        launcher = lambda *args: self.launched.append(args)  # noqa: E731  (Triton's is no method either)
        wrapped = driver.wrap_handle_tensordesc(launcher, SIGNATURE, list(metadata))
        self.run = _Launcher(wrapped)

    def launch(self, *arguments):
        self.run(1, 1, 1, 7, 1, (), None, None, None, *arguments)
        note_launch(self, (1, 1, 1), arguments, ())


class _Launcher:
    """As Triton's CudaLauncher: it hands kernel arguments on as one tuple."""

    def __init__(self, launch):
        self.launch = launch

    def __call__(self, *args):
        self.launch(*args[:9], args[9:])


def call(kernel, x, y):
    def compute():
        out = torch.empty(8, dtype=torch.int32)
        kernel.launch(Descriptor(x, "x"), 5, Descriptor(y, "y"), out)
        return out

    return replayed("a situation", (x, y), compute)


def numbers():
    return torch.randint(-99, 99, (8,), dtype=torch.int32)


def kernel_arguments(args):
    return list(args[-1])


def test_the_launcher_gets_what_the_wrapper_would_hand_on(monkeypatch):
    kernel, x, y = Compiled(monkeypatch), numbers(), numbers()
    call(kernel, x, y)
    call(kernel, x, y)
    first, second = (kernel_arguments(args) for args in kernel.launched)
    assert first[:-1] == second[:-1]
    assert first[0] == ("map", "x", "of x", x.data_ptr()) and first[4] == ("map", "y", "of y", y.data_ptr())
    assert len(first) == len(second) == 8


def test_each_is_made_once_for_an_address(monkeypatch):
    kernel, sources = Compiled(monkeypatch), [numbers() for _ in range(4)]
    for _ in range(3):
        for x, y in (sources[:2], sources[2:]):
            call(kernel, x, y)
    made = kernel.made[2:]  # by the wrapper, when the first call ran as usual
    assert len(made) == len(set(made)) == 4
    wanted = [[s.data_ptr() for s in pair] for pair in (sources[:2], sources[2:])]
    found = [[kernel_arguments(args)[i][3] for i in (0, 4)] for args in kernel.launched]
    assert found == wanted * 3


def test_few_are_kept(monkeypatch):
    monkeypatch.setattr(placed, "LARGEST_MAPS", 3)
    kernel, sources = Compiled(monkeypatch), [numbers() for _ in range(20)]
    for x in sources:
        call(kernel, x, sources[0] if x is not sources[0] else sources[1])
    (recording,) = replay._thread.known.values()
    assert all(len(known) <= 3 for *_, known in recording.steps[0]._maps)


@pytest.mark.parametrize("metadata", [[None, None], ["one"], []])
def test_other_metadata_leave_the_wrapper_in_place(monkeypatch, metadata):
    launch = lambda *args: None  # noqa: E731
    wrapper = SimpleNamespace(launch=_wrap(launch, metadata))
    assert unwrap(wrapper, 2) is None


def _wrap(launcher, tensordesc_meta):
    def inner(*args):
        launcher(*args, tensordesc_meta)

    return inner


def test_another_triton_is_launched_as_it_is():
    for run in (lambda *args: None, SimpleNamespace(), SimpleNamespace(launch=lambda *args: None)):
        assert unwrap(run, 1) is None


def test_a_descriptor_that_takes_more_to_be_made_is_left_to_triton(monkeypatch):
    kernel = Compiled(monkeypatch)
    monkeypatch.setattr(driver, "make_tensordesc_arg", lambda descriptor, kernel_metadata, metadata: [])
    assert unwrap(kernel.run, 2) is None
