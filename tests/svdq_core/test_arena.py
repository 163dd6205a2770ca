"""Memory side by side: where tensors lie, what fits behind them, and what does not."""

import threading

import pytest
import torch

from svdquant_pack.kernels.format import BLOB_ALIGNMENT
from svdquant_pack.svdq_core import arena as arena_module
from svdquant_pack.svdq_core.arena import Arena, Staging, aligned, blank, empty


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (1 << 20, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float8_e4m3fn, torch.float32], ids=str)
def test_empty_is_aligned_and_of_its_kind(shape, dtype):
    tensor = empty(shape, dtype)
    assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
    assert not tensor.numel() or tensor.data_ptr() % BLOB_ALIGNMENT == 0
    assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_blank_is_made_on_the_device():
    assert blank(100, torch.device("cpu")).shape == blank(100, torch.device("meta")).shape == (100,)


@pytest.fixture
def arena():
    made = Arena(3 * BLOB_ALIGNMENT)
    made.memory.fill_(255)
    return made


def test_tensors_lie_side_by_side_with_zeros_between(arena):
    first, second = arena.take((5, 2), torch.bfloat16), arena.take((256,), torch.int8)
    first.fill_(1)
    second.fill_(1)
    assert arena.claim([first, second]) == [0, BLOB_ALIGNMENT]
    assert arena.memory[20:BLOB_ALIGNMENT].count_nonzero() == 0
    assert arena.memory[2 * BLOB_ALIGNMENT :].eq(255).all()


def test_a_tensor_that_has_no_room_is_made_elsewhere(arena):
    arena.take((500,), torch.int8)
    inside, outside = arena.copy(torch.arange(3)), arena.copy(torch.arange(300))
    assert outside.tolist() == list(range(300)) and inside.tolist() == [0, 1, 2]
    assert arena.claim([inside]) == [2 * BLOB_ALIGNMENT]
    assert arena.claim([inside, outside]) is None


def test_later_tensors_go_behind_the_others_and_no_place_is_given_away_twice(arena):
    first, second = arena.take((10,), torch.int8), arena.take((10,), torch.int8)
    assert arena.claim([torch.ones(10), first, torch.ones(0)]) == [2 * BLOB_ALIGNMENT, 0, 3 * BLOB_ALIGNMENT]
    assert arena.claim([torch.ones(10), first]) is None, "that of `second` is not free although it is not named"
    assert arena.claim([second]) == [BLOB_ALIGNMENT]


def test_views_at_odd_places_need_a_copy(arena):
    tensor = arena.take((256, 2), torch.int8)
    assert arena.claim([tensor[1:2]]) is None
    assert arena.claim([tensor.T]) is None
    assert arena.claim([tensor, tensor[128:]]) == [0, BLOB_ALIGNMENT]


def test_room_is_counted_in_whole_units():
    assert [aligned(n) for n in (0, 1, 256, 257)] == [0, 256, 256, 512]


def test_staging_is_used_again_and_grows(monkeypatch):
    monkeypatch.setattr(arena_module, "LEAST_STAGED", 2 * BLOB_ALIGNMENT)
    staging = Staging()
    first, second = staging.take(10), staging.take(BLOB_ALIGNMENT)
    assert second.data_ptr() - first.data_ptr() == BLOB_ALIGNMENT
    third = staging.take(5000).fill_(3)  # more than there is: first and second stay where they are
    first.fill_(1)
    second.fill_(2)
    assert (set(first.tolist()), set(second.tolist()), set(third.tolist())) == ({1}, {2}, {3})
    staging.restart()
    again = [staging.take(nbytes) for nbytes in (10, BLOB_ALIGNMENT, 5000)]
    assert again[2].data_ptr() - again[0].data_ptr() == 2 * BLOB_ALIGNMENT
    assert again[0].untyped_storage().data_ptr() == again[2].untyped_storage().data_ptr()


def test_every_thread_has_staging_of_its_own():
    staging, found = Staging(), []
    mine = staging.take(100)
    thread = threading.Thread(target=lambda: found.append(staging.take(100)))
    thread.start()
    thread.join()
    assert found[0].data_ptr() != mine.data_ptr()
