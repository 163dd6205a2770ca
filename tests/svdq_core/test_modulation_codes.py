"""Codes of modulation layers: there and back, where single codes lie, and rows over several blocks and chunks."""

import pytest
import torch
from compare import assert_same

from svdquant_pack.kernels.packing import pack_nibbles
from svdquant_pack.svdq_core import layouts, modulation_codes
from svdquant_pack.svdq_core.modulation_codes import codes_from_nunchaku, codes_to_nunchaku


def bits(rows, half):
    return torch.randint(0, 256, (rows, half), dtype=torch.uint8).view(torch.int8)


@pytest.mark.parametrize("chunks", [1, 3, 6])
@pytest.mark.parametrize(("rows", "columns"), [(12, 64), (24, 128), (36, 192)], ids=str)
def test_codes_come_back(rows, columns, chunks):
    qweight = bits(rows, columns // 2)
    stored = codes_to_nunchaku(qweight, chunks)
    assert stored.dtype == torch.int32 and stored.shape == (rows // 4, columns // 2)
    assert_same(codes_from_nunchaku(stored, chunks), qweight)
    assert chunks == 1 or not torch.equal(codes_from_nunchaku(stored, 1), qweight)


def test_chunks_are_rows_put_in_order():
    stored = bits(4 * 36, 64).view(torch.int32).view(36, 64)[:, :32].contiguous()
    assert_same(codes_from_nunchaku(stored, 6), layouts.rows_from_interleaved(codes_from_nunchaku(stored, 1), 6))


@pytest.mark.parametrize("block_bytes", [1, 32 * 24, 10**6])
def test_blocks_of_rows_fit_together(block_bytes, monkeypatch):
    """Smaller than the least number of rows, some rows, all; the last block is shorter than the others."""
    qweight = bits(12 * 7, 32)
    stored = codes_to_nunchaku(qweight, 3)
    monkeypatch.setattr(modulation_codes, "BLOCK_BYTES", block_bytes)
    assert_same(codes_from_nunchaku(stored, 3), qweight)


def test_the_result_goes_where_it_is_wanted():
    qweight, out = bits(24, 64), torch.empty(24, 64, dtype=torch.int8)
    assert codes_from_nunchaku(codes_to_nunchaku(qweight, 6), 6, out=out).data_ptr() == out.data_ptr()
    assert_same(out, qweight)


@pytest.mark.parametrize(
    ("column", "word", "shift"), [(0, 0, 0), (1, 1, 0), (8, 0, 4), (24, 0, 12), (32, 8, 0), (39, 15, 0)]
)
def test_where_one_modulation_code_is_stored(column, word, shift):
    """16-bit words of k, k+8, k+16, k+24; rows of a quad follow each other in runs of 16 words."""
    codes = torch.zeros(4, 64, dtype=torch.uint8)
    codes[2, column] = 9
    words = codes_to_nunchaku(pack_nibbles(codes)).view(torch.int16).flatten().int() & 0xFFFF
    assert words.nonzero().flatten().tolist() == [2 * 16 + word]
    assert int(words[2 * 16 + word]) == 9 << shift
