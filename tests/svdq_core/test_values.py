"""Values from outside: every pattern of bits that is no number is found, and none that is one."""

import pytest
import torch

from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.values import E4M3, FLOAT, check_values

SMALL = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float8_e4m3fn: torch.int8}


def is_refused(tensor):
    try:
        check_values(tensor, (*FLOAT, *E4M3), "x")
    except CheckpointError:
        return True
    return False


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_of_all_patterns_those_that_are_no_numbers(dtype):
    count = 1 << (8 * dtype.itemsize)
    patterns = torch.arange(count, dtype=torch.int32).to(SMALL[dtype]).view(dtype)
    finite = torch.isfinite(patterns.float())
    assert not is_refused(patterns[finite]) and 0 < int((~finite).sum()) < count
    for pattern in patterns[~finite][:: max(int((~finite).sum()) // 40, 1)]:
        assert is_refused(torch.stack((torch.zeros((), dtype=dtype), pattern)))


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_single_precision(value):
    numbers = torch.tensor([torch.finfo(torch.float32).max, torch.finfo(torch.float32).min, -0.0, 1e-45])
    assert not is_refused(numbers) and is_refused(torch.cat((numbers, torch.tensor([value]))))


def test_nothing_and_what_does_not_lie_in_order():
    assert not is_refused(torch.zeros(0, 5)) and not is_refused(torch.tensor(1.0))
    square = torch.ones(4, 4).bfloat16()
    square[3, 0] = float("inf")
    assert is_refused(square.T) and not is_refused(square[:, 1:])


def test_integers_have_only_to_be_of_their_dtype():
    check_values(torch.ones(3, dtype=torch.int8), (torch.int8,), "x")
    with pytest.raises(CheckpointError, match="x is int8, expected bfloat16 or float16 or float32"):
        check_values(torch.ones(3, dtype=torch.int8), FLOAT, "x")
