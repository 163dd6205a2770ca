"""Packing of 4-bit codes: a byte worked out by hand, and every code there and back."""

import torch
from compare import assert_same

from svdquant_pack.kernels.packing import pack_nibbles, unpack_int4, unpack_uint4


def test_even_column_is_the_low_nibble():
    packed = pack_nibbles(torch.tensor([[3, -2, -8, 7]]))
    assert_same(packed, torch.tensor([[0xE3 - 256, 0x78]], dtype=torch.int8))


def test_signed_codes_return():
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(4, 4)
    assert_same(unpack_int4(pack_nibbles(codes)), codes)


def test_unsigned_codes_return():
    codes = torch.arange(16, dtype=torch.uint8).repeat(4, 4).roll(3, dims=1)
    assert_same(unpack_uint4(pack_nibbles(codes)), codes)
