"""Tile orders: inverse pairs on every shape, and where a few hand-computed values end up."""

import pytest
import torch
from compare import assert_same

from svdquant_pack.kernels.packing import pack_nibbles, unpack_uint4
from svdquant_pack.svdq_core import layouts

SHAPES = [(128, 128), (256, 128), (128, 384), (384, 256)]


def bits(*shape, dtype):
    """Random bits: every value a tensor of that dtype can hold, NaN included."""
    nbytes = torch.empty((), dtype=dtype).element_size()
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * nbytes), dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize(("rows", "columns"), SHAPES, ids=str)
def test_qweight_comes_back(rows, columns):
    qweight = bits(rows, columns // 2, dtype=torch.int8)
    stored = layouts.qweight_to_nunchaku(qweight)
    assert_same(layouts.qweight_from_nunchaku(stored), qweight)
    assert not torch.equal(stored, qweight)


@pytest.mark.parametrize("size", [128, 256, 640])
def test_vectors_come_back(size):
    vector = bits(size, dtype=torch.bfloat16)
    assert_same(layouts.vector_from_nunchaku(layouts.vector_to_nunchaku(vector)), vector)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(("rows", "columns"), SHAPES, ids=str)
def test_wscales_come_back(rows, columns, dtype):
    group = 16 if dtype == torch.float8_e4m3fn else 64
    wscales = bits(columns // group, rows, dtype=dtype)
    assert_same(layouts.wscales_from_nunchaku(layouts.wscales_to_nunchaku(wscales)), wscales)


@pytest.mark.parametrize("rank", [16, 48, 128])
@pytest.mark.parametrize("size", [128, 384])
def test_low_rank_factors_come_back(size, rank):
    factor = bits(size, rank, dtype=torch.float16)
    assert_same(layouts.proj_down_from_nunchaku(layouts.proj_down_to_nunchaku(factor)), factor)
    assert_same(layouts.proj_up_from_nunchaku(layouts.proj_up_to_nunchaku(factor)), factor)
    assert not torch.equal(layouts.proj_up_to_nunchaku(factor), layouts.proj_down_to_nunchaku(factor))


@pytest.mark.parametrize("chunks", [1, 3, 6])
def test_interleaved_rows_come_back(chunks):
    rows = torch.arange(chunks * 5)
    stored = layouts.rows_to_interleaved(rows, chunks)
    assert stored[:chunks].tolist() == [5 * c for c in range(chunks)]
    assert_same(layouts.rows_from_interleaved(stored, chunks), rows)


def test_vector_order_begins_as_the_kernels_load_it():
    """The first sixteen stored values of a tile are channels 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15."""
    stored = layouts.vector_to_nunchaku(torch.arange(256))
    assert stored[:20].tolist() == [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, 16, 17, 24, 25]
    assert stored[128] == 128


def test_int4_scales_are_stored_tile_by_tile():
    """All groups of the first 128 channels come before the other channels, whatever the label says."""
    groups, rows = 4, 256
    wscales = torch.arange(groups * rows).view(groups, rows)
    stored = layouts.wscales_to_nunchaku(wscales).flatten()
    assert stored[: groups * 128].remainder(rows).max() == 127
    assert stored[128:130].tolist() == [rows, rows + 1]


def test_nvfp4_scales_lie_where_the_matrix_instruction_reads_them():
    """Stored byte s + 4 (f + 4 l), four groups each: row 32 s + 8 f + l."""
    codes = torch.arange(128, dtype=torch.uint8).repeat(4, 1)  # every group of a row holds the number of the row
    stored = layouts.wscales_to_nunchaku(codes.view(torch.float8_e4m3fn)).view(torch.uint8).flatten()
    assert stored[:16].tolist() == [0] * 4 + [32] * 4 + [64] * 4 + [96] * 4
    assert stored[16] == 8 and stored[64] == 1


@pytest.mark.parametrize(
    ("row", "column", "index"), [(0, 0, 0), (0, 2, 1), (0, 8, 16), (0, 32, 4), (1, 0, 64), (8, 0, 8)]
)
def test_where_one_weight_code_is_stored(row, column, index):
    """Byte of the low nibble: words of 8 codes; lane 4l + q holds four of them, (h, g) = (0,0), (0,1), (1,0), (1,1)."""
    codes = torch.zeros(128, 64, dtype=torch.uint8)
    codes[row, column] = 15
    stored = layouts.qweight_to_nunchaku(pack_nibbles(codes)).flatten()
    assert stored.nonzero().flatten().tolist() == [index] and stored[index] == 15


def test_plus_one_goes_to_the_scales_only_and_comes_off_in_float32():
    bias = torch.tensor([0.5, -0.25, 0.125] * 2).repeat_interleave(2)
    stored = layouts.add_plus_one(bias, 6, torch.bfloat16)
    assert stored.tolist() == [0.5, 0.5, 0.75, 0.75, 0.125, 0.125] * 2
    back = layouts.remove_plus_one(stored, 6)
    assert back.dtype == torch.float32 and torch.equal(back, bias)
    assert layouts.remove_plus_one(torch.tensor([1.0078125], dtype=torch.bfloat16).repeat(3), 3)[1] == 0.0078125


def test_swapping_halves_twice_changes_nothing():
    tensor = torch.randn(6, 3)
    swapped = layouts.swap_halves(tensor)
    assert torch.equal(swapped[:3], tensor[3:]) and torch.equal(layouts.swap_halves(swapped), tensor)


def test_unpack_of_the_first_word_is_eight_consecutive_inputs():
    stored = torch.zeros(128, 32, dtype=torch.int8)
    stored.view(torch.uint8)[0, :4] = torch.tensor([0x21, 0x43, 0x65, 0x87], dtype=torch.uint8)
    codes = unpack_uint4(layouts.qweight_from_nunchaku(stored))
    assert codes[0, :8].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert int(codes.bool().sum()) == 8
