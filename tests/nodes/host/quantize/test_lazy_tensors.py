"""Tensors whose values are read when they are asked for: what is done to them before is done to the values."""

import pytest
import torch

from svdquant_pack.nodes.host.quantize.lazy_tensors import Joining, LazyTensor, LazyWeights
from svdquant_pack.svdq_core.errors import CheckpointError

VALUES = torch.arange(24.0).view(4, 6)


def lazy(reads: list | None = None) -> LazyTensor:
    def make():
        if reads is not None:
            reads.append(1)
        return VALUES

    return LazyTensor.of((4, 6), torch.float32, make)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[1:3],
        lambda t: t.transpose(0, 1),
        lambda t: t.chunk(2, dim=0)[1],
        lambda t: torch.cat((t[2:], t[:2])),
        lambda t: t.view(2, 2, 6)[:, 0].reshape(12).contiguous(),
        lambda t: t.to(torch.float16),
        lambda t: torch.stack((t, t))[1, 0],
    ],
    ids=["slice", "transpose", "chunk", "cat", "view", "to", "stack"],
)
def test_what_is_done_before_is_done_to_the_values(change):
    reads: list = []
    changed = change(lazy(reads))
    assert not reads and changed.shape == change(VALUES).shape and changed.dtype == change(VALUES).dtype
    assert torch.equal(LazyWeights({"x": changed})["x"], change(VALUES)) and reads


def test_values_that_decide_are_read():
    assert lazy()[0, 3].item() == 3 and torch.std(lazy()).item() == torch.std(VALUES).item()
    assert bool((lazy()[0, 1] == 1).item())


def test_what_is_written_into_memory_is_read_together():
    """As ComfyUI joins query, key and value, each after the other into memory that grows."""
    reads: list = []
    first, second = lazy(reads), lazy(reads)
    with Joining():
        rows = torch.empty_like(first)
        rows.narrow(0, 0, 4)[:] = first
        more = torch.empty([8, 6], device=first.device, dtype=first.dtype)
        more[:4] = rows
        more.narrow(0, 4, 4)[:] = second.flip(0)
    assert not reads and torch.equal(LazyWeights({"x": more})["x"], torch.cat((VALUES, VALUES.flip(0))))
    assert torch.equal(LazyWeights({"x": rows})["x"], VALUES)


def test_a_tensor_may_be_written_into_itself():
    """As ComfyUI exchanges scale and shift."""
    x = lazy()
    before = x + 1
    x[:] = torch.cat((x[2:], x[:2]))
    x[0] = 7
    expected = torch.cat((VALUES[2:], VALUES[:2]))
    expected[0] = 7
    assert torch.equal(LazyWeights({"x": x})["x"], expected)
    assert torch.equal(LazyWeights({"x": before})["x"], VALUES + 1)


def test_other_writing_is_refused():
    with pytest.raises(CheckpointError, match="use Quantize Model"):
        lazy().copy_(VALUES)


def test_shapes_cost_no_read():
    reads: list = []
    weights = LazyWeights({"x": lazy(reads)})
    assert weights.shape("x") == (4, 6) and "x" in weights and len(weights) == 1 and not reads
