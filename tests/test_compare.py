"""The comparisons can fail, and say where and how much; unwritten memory is poisoned."""

import pytest
import torch
from compare import TOLERANCES, assert_close, assert_same, relative_rms_error


def expected_values(dtype=torch.float32):
    return torch.linspace(-2, 2, 60).view(6, 10).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8], ids=str)
def test_same_accepts_a_copy_and_names_the_first_difference(dtype):
    expected = expected_values(dtype)
    assert_same(expected.clone(), expected)
    changed = expected.clone()
    changed[2, 3] = 4
    changed[5, 9] = 0
    with pytest.raises(AssertionError, match=r"2 of 60 values differ, first at \(2, 3\): 4(\.0)?, expected"):
        assert_same(changed, expected)


def test_same_is_about_bits_shape_and_dtype():
    nan = torch.tensor([float("nan"), 1.0])
    assert_same(nan, nan.clone())
    assert_same(nan.reshape(2, 1).T, nan.reshape(1, 2))
    with pytest.raises(AssertionError, match=r"first at \(0,\): 0\.0, expected -0\.0"):
        assert_same(torch.tensor([0.0]), torch.tensor([-0.0]))
    with pytest.raises(AssertionError, match="dtype"):
        assert_same(nan, nan.double())
    with pytest.raises(AssertionError, match=r"shape \(2,\), expected \(1, 2\)"):
        assert_same(nan, nan.reshape(1, 2))


def test_relative_rms_error():
    expected = torch.full((4,), 2.0)
    assert relative_rms_error(expected * 1.5, expected) == 0.5
    assert relative_rms_error(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_rms_error(torch.ones(3), torch.zeros(3)) == float("inf")


@pytest.mark.parametrize(("op", "dtype"), TOLERANCES, ids=str)
def test_close_draws_the_line_at_the_limit(op, dtype):
    limit, reason = TOLERANCES[op, dtype]
    assert reason
    expected = torch.randn(1000, dtype=torch.float64)
    noise = torch.randn_like(expected)
    noise *= limit * expected.norm() / noise.norm()
    within, beyond = expected + 0.9 * noise, expected + 1.1 * noise
    # the limit itself is what is tested here: hand over in float64, under the row of the dtype
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOLERANCES, (op, torch.float64), (limit, reason))
        assert_close(within, expected, op=op)
        with pytest.raises(AssertionError, match=f"{op} .*relative RMS error .* worst at"):
            assert_close(beyond, expected, op=op)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_close_refuses_what_is_not_finite(bad):
    expected = expected_values()
    actual = expected.clone()
    actual[1, 2] = bad
    with pytest.raises(AssertionError, match=r"1 values not finite, first at \(1, 2\)"):
        assert_close(actual, expected, op="gemm_w4a4")
    with pytest.raises(AssertionError, match=r"first at \(1, 2\)"):
        assert_close(expected, actual, op="gemm_w4a4")
    assert_close(actual, actual.clone(), op="gemm_w4a4")


def test_every_row_allows_little():
    # float16: torch lets cuBLAS add parts of k in 16 bits (DECISIONS 13)
    allowed = {torch.float32: 1e-5, torch.float16: 2.5e-3, torch.bfloat16: 1e-2}
    assert all(limit <= allowed[dtype] for (_, dtype), (limit, _) in TOLERANCES.items())


def test_unwritten_memory_is_nan():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.empty(1000, dtype=dtype).isnan().all()
        assert torch.empty_like(torch.zeros(10, dtype=dtype)).isnan().all()
    assert torch.zeros(3).new_empty(5).isnan().all()


def test_infinity_beside_the_largest_float16_is_a_rounding():
    expected = torch.tensor([65504.0, 1.0, -65504.0, 2.0]).half()
    actual = torch.tensor([float("inf"), 1.0, -float("inf"), 2.0]).half()
    assert_close(actual, expected, op="gemm_w4a8")
    assert_close(expected, actual, op="gemm_w4a8")
    for wrong in (-actual, torch.where(expected == 1, actual[0], actual)):
        with pytest.raises(AssertionError, match="not finite"):
            assert_close(wrong, expected, op="gemm_w4a8")
