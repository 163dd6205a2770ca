"""The specification of a GEMM's epilogue against values worked out by hand: when it rounds, and in which order."""

import pytest
import torch
from compare import assert_same

from svdquant_pack.kernels.epilogue import Epilogue, finish

STEP = 2.0**-7  # of bfloat16 between 1 and 2


def epilogue(products, out=None, **options):
    empty = torch.empty(1, 0, dtype=torch.bfloat16)
    return finish(torch.tensor([products]), empty, empty.expand(len(products), 0), None, Epilogue(out, **options))


def row(*values):
    return torch.tensor([values], dtype=torch.bfloat16)


def test_a_sum_is_rounded_once():
    """1 + half a step would be rounded to 1, and 1 + half a step once more."""
    out = row(STEP / 2, 3.0)
    result = epilogue([1 + STEP / 2, -1.0], out, accumulate=True)
    assert result.data_ptr() == out.data_ptr()
    assert_same(out, row(1 + STEP, 2.0))


def test_gelu_sees_the_rounded_sum():
    """gelu(1) = 0.84119 rounds to 215/256; gelu(1 + half a step) = 0.84543 would round to 216/256.

    gelu(-1) = -0.15881 rounds to -163/1024.
    """
    assert_same(epilogue([1 + STEP / 2, -1.0], gelu_from=0), row(215 / 256, -163 / 1024))


def test_gelu_begins_at_a_column():
    assert_same(epilogue([-1.0, 1 + STEP / 2], gelu_from=1), row(-1.0, 215 / 256))


def test_sum_comes_before_gelu():
    assert_same(epilogue([0.5, -1.5], row(0.5, 0.5), accumulate=True, gelu_from=0), row(215 / 256, -163 / 1024))


def test_without_accumulate_out_is_only_written():
    assert_same(epilogue([0.5, -2.0], row(9.0, 9.0)), row(0.5, -2.0))


def test_a_sum_needs_what_it_adds_to():
    with pytest.raises(ValueError, match="out is None"):
        epilogue([0.5], accumulate=True)
