"""The two questions a test may ask of tensors: is it the same, bit for bit, and is it close enough.

How close is close enough stands in one table, by operation and dtype, each limit with its reason.
"""

import torch
from torch import Tensor

_BF16_ORDER = "same codes, float32 sums in another order: a value at a rounding boundary may land on the next bfloat16"
_FP16_ORDER = "same codes, float32 sums in another order: a value at a rounding boundary may land on the next float16"
_FP32_ORDER = "same codes, float32 sums in another order: about sqrt(K) roundings of 2^-24 each"

# (operation, dtype of the result) -> (largest RMS error / RMS of the expected values, why that much)
# Measured on the CPU with K = 3072 against float64 sums: bfloat16 6.4e-5, float16 1.7e-5, float32 2.8e-7 at most.
TOLERANCES: dict[tuple[str, torch.dtype], tuple[float, str]] = {}
for _op in ("gemm_w4a4", "gemm_w4a8", "gemm_nvfp4", "gemm_w4a16", "gemm_awq"):
    TOLERANCES[_op, torch.bfloat16] = (5e-4, _BF16_ORDER)
    TOLERANCES[_op, torch.float16] = (1e-4, _FP16_ORDER)
    TOLERANCES[_op, torch.float32] = (2e-6, _FP32_ORDER)


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())


def _check_kind(actual: Tensor, expected: Tensor, same_dtype: bool) -> None:
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if same_dtype:
        assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal shape, dtype and bits: -0.0 is not 0.0, and a NaN equals the same NaN."""
    _check_kind(actual, expected, same_dtype=True)
    bits = [tensor.detach().cpu().contiguous().reshape(-1, 1).view(torch.uint8) for tensor in (actual, expected)]
    different = (bits[0] != bits[1]).any(dim=1).view(actual.shape)
    if different.any():
        index = _first(different)
        raise AssertionError(
            f"{int(different.sum())} of {actual.numel()} values differ, first at {index}: "
            f"{actual[index].item()!r}, expected {expected[index].item()!r}"
        )


def relative_rms_error(actual: Tensor, expected: Tensor) -> float:
    """RMS of the difference / RMS of the expected values, in float64; 0 where both are all zeros."""
    error = (actual.detach().double().cpu() - expected.detach().double().cpu()).square().mean().sqrt()
    scale = expected.detach().double().cpu().square().mean().sqrt()
    return float(error / scale) if scale > 0 else float("inf") if error > 0 else 0.0


def assert_close(actual: Tensor, expected: Tensor, op: str) -> None:
    """RMS error within the table's limit for (op, actual.dtype); NaN or infinity only where it is expected, too."""
    _check_kind(actual, expected, same_dtype=False)
    limit, reason = TOLERANCES[op, actual.dtype]
    result, wanted = actual.detach().double().cpu(), expected.detach().double().cpu()
    if actual.dtype == torch.float16:  # at the edge of what it holds, one rounding decides between 65504 and infinity
        edge = (result.abs() >= 65472) & (wanted.abs() >= 65472) & (result.sign() == wanted.sign())
        result, wanted = (torch.where(edge, t.sign() * float("inf"), t) for t in (result, wanted))
    wrong = ~torch.isfinite(result) & ~(result.isnan() & wanted.isnan()) & (result != wanted)
    wrong |= ~torch.isfinite(wanted) & torch.isfinite(result)
    if wrong.any():
        index = _first(wrong)
        raise AssertionError(
            f"{op}: {int(wrong.sum())} values not finite, first at {index}: "
            f"{result[index].item()}, expected {wanted[index].item()}"
        )
    finite = torch.isfinite(wanted)
    error = relative_rms_error(result[finite], wanted[finite]) if finite.any() else 0.0
    if error > limit:
        index = _first((result - wanted).abs().nan_to_num() == (result - wanted).abs().nan_to_num().max())
        raise AssertionError(
            f"{op} {actual.dtype}: relative RMS error {error:.3g}, allowed {limit:.3g} ({reason}); "
            f"worst at {index}: {result[index].item():.6g}, expected {wanted[index].item():.6g}"
        )
