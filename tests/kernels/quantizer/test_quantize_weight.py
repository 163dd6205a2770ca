"""round_columns: the recursion of GPTQ, step by step, for whole numbers and for e2m1."""

import pytest
import torch
from compare import assert_same

from svdquant_pack.kernels.quantizer.quantize_weight import MOST_COLUMNS, round_columns

E2M1 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6])
SHAPES = [(128, 48), (96, 40), (1, 16), pytest.param(128, 12288, marks=pytest.mark.gpu)]


def _problem(C, N, device):
    g = torch.Generator().manual_seed(0)
    left, scales = torch.randn(C, N, generator=g), torch.rand(C, N, generator=g) * 0.2 + 0.1
    inverse = (torch.randn(C, C, generator=g) * 0.2).triu(1) + torch.diag(torch.rand(C, generator=g) + 0.5)
    return left.to(device), inverse.to(device), scales.to(device)


def _snap(units, e2m1):
    if not e2m1:
        return units.clamp(-7, 7).round()
    grid = E2M1.to(units.device, units.dtype)
    middles = (grid[1:] + grid[:-1]) / 2
    return grid[torch.bucketize(units.abs(), middles)] * units.sign()


def _reference(left, inverse, scales, e2m1):
    """The recursion in float64."""
    left, inverse, scales = left.double().clone(), inverse.double(), scales.double()
    units, errors = torch.empty_like(left), torch.empty_like(left)
    for i in range(len(left)):
        units[i] = _snap(left[i] / scales[i], e2m1)
        errors[i] = (left[i] - units[i] * scales[i]) / inverse[i, i]
        left[i + 1 :] -= inverse[i, i + 1 :, None] * errors[i]
    return units.float(), errors.float()


@pytest.mark.parametrize("e2m1", [False, True], ids=["int4", "nvfp4"])
@pytest.mark.parametrize(("C", "N"), SHAPES)
def test_the_recursion(C, N, e2m1, device):
    left, inverse, scales = _problem(C, N, device)
    units = torch.full_like(left, torch.nan)
    limit = 6.0 if e2m1 else 7.0
    errors = round_columns(left, inverse, scales, low=-limit, high=limit, e2m1=e2m1, units=units)
    wanted_units, wanted_errors = _reference(left, inverse, scales, e2m1)
    same = (units == wanted_units).all(dim=0)  # a tie that float32 decides otherwise changes what follows it
    assert same.float().mean() > 0.98
    torch.testing.assert_close(errors[:, same], wanted_errors[:, same], rtol=1e-4, atol=1e-4)


def test_first_column_and_saturation(device):
    left = torch.tensor([[0.25, 0.33, -0.9, 100.0]] * 2, device=device)
    scales, units = torch.full_like(left, 0.1), torch.empty_like(left)
    inverse = torch.tensor([[0.2, 1.0], [0.0, 1.0]], device=device)
    round_columns(left, inverse, scales, low=-7.0, high=7.0, e2m1=False, units=units)
    assert_same(units[0], torch.tensor([2.0, 3.0, -7.0, 7.0], device=device))
    # five times what the first column lost was taken from the second: 0.0, 0.18, 0.1, -396.5
    assert_same(units[1] + 0, torch.tensor([0.0, 2.0, 1.0, -7.0], device=device))


def test_wrong_sizes_are_refused(device):
    left, inverse, scales = _problem(MOST_COLUMNS + 1, 16, device)
    with pytest.raises(ValueError, match="129 columns"):
        round_columns(left, inverse, scales, low=-7.0, high=7.0, e2m1=False, units=torch.empty_like(left))
    left, inverse, scales = _problem(8, 16, device)
    with pytest.raises(ValueError, match="contiguous"):
        round_columns(left, inverse, scales, low=-7.0, high=7.0, e2m1=False, units=torch.empty(16, 8, device=device).T)
