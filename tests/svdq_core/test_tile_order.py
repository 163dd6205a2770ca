"""Tile orders in general: against torch's own permutation, in blocks of any size, into memory that is given."""

import math

import numpy as np
import pytest
import torch
from compare import assert_same

from svdquant_pack.svdq_core import layouts, tile_order
from svdquant_pack.svdq_core.tile_order import TileOrder

ORDERS = {name: order for name, order in vars(layouts).items() if isinstance(order, TileOrder)}
DTYPES = {1: torch.uint8, 2: torch.bfloat16, 4: torch.int32}


def sizes_of(order):
    open_axes = [axis for axis in order.stored if axis not in order.sizes]
    return order.sizes | dict(zip(open_axes, (3, 5, 2), strict=False))


def problem(order, itemsize):
    """(stored, natural, sizes) of random bits, natural as torch permutes."""
    sizes = sizes_of(order)
    shape = [math.prod(sizes[axis] for axis in group) for group in order.natural]
    count = math.prod(shape)
    stored = torch.randint(0, 256, (count * itemsize,), dtype=torch.uint8).view(DTYPES[itemsize])
    view = stored.view([sizes[axis] for axis in order.stored])
    return stored, view.permute([order.stored.index(axis) for axis in order.flat_natural]).reshape(shape), shape


@pytest.mark.parametrize("block_bytes", [1, 3000, 1 << 30])
@pytest.mark.parametrize("itemsize", DTYPES)
@pytest.mark.parametrize("name", ORDERS)
def test_it_is_the_permutation_it_says(name, itemsize, block_bytes, monkeypatch):
    """Blocks of one entry, of some with a shorter one at the end, and one block."""
    monkeypatch.setattr(tile_order, "BLOCK_BYTES", block_bytes)
    order = ORDERS[name]
    stored, natural, shape = problem(order, itemsize)
    found = order.to_natural(stored, *shape)
    assert_same(found.view(torch.uint8), natural.view(torch.uint8))
    assert_same(order.to_stored(found, *stored.shape).view(torch.uint8), stored.view(torch.uint8))


@pytest.mark.parametrize("name", ORDERS)
def test_the_result_goes_where_it_is_wanted(name):
    stored, natural, shape = problem(ORDERS[name], 2)
    out = torch.empty(natural.numel() + 8, dtype=torch.bfloat16)[8:].view(shape)
    assert ORDERS[name].to_natural(stored, *shape, out=out) is out
    assert_same(out.view(torch.uint8), natural.view(torch.uint8))


def test_a_source_of_odd_address_or_with_gaps_is_read():
    """A file need not align its tensors, and a tensor need not be contiguous."""
    sound = torch.randint(0, 256, (128, 64), dtype=torch.uint8).view(torch.int8)
    odd = torch.from_numpy(np.empty(sound.numel() + 1, dtype=np.int8)[1:]).view(128, 64).copy_(sound)
    assert odd.data_ptr() % 2
    assert_same(layouts.qweight_from_nunchaku(odd), layouts.qweight_from_nunchaku(sound))
    order = ORDERS["_PROJ_UP"]
    stored, natural, shape = problem(order, 2)
    gaps = torch.stack((stored, stored), dim=1)[:, 0]
    assert not gaps.is_contiguous()
    assert_same(order.to_natural(gaps, *shape).view(torch.uint8), natural.view(torch.uint8))


def test_a_tensor_without_elements_stays_one():
    assert layouts.proj_down_from_nunchaku(torch.empty(128, 0)).shape == (128, 0)
    assert layouts.proj_up_to_nunchaku(torch.empty(128, 0)).shape == (128, 0)
