"""fit_group_scales: the same scales and rounded weights as the torch search."""

import pytest
import torch

from svdquant_pack.kernels.quantizer.quantize_scales import fit_group_scales
from svdquant_pack.svdq_core.quantize.grid import INT4, NVFP4
from svdquant_pack.svdq_core.quantize.round import (
    E4M3_STEPS,
    SCALE_RATIOS,
    fit_scales_in_torch,
    round_to_units,
    units_to_values,
)

SHAPES = [(20, 128), (16, 192), pytest.param(3072, 3072, marks=pytest.mark.gpu)]


@pytest.mark.parametrize("sweep", [True, False], ids=["sweep", "absmax"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
@pytest.mark.parametrize("grid", [INT4, NVFP4], ids=["int4", "nvfp4"])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_same_as_in_torch(N, K, grid, weighted, sweep, dtype, device):
    g = torch.Generator().manual_seed(0)
    residual = (torch.randn(N, K, generator=g) * torch.rand(N, 1, generator=g)).to(device)
    residual[1, :64] = 0  # a group of zeros
    importance = (torch.rand(K, generator=g) + 0.1).to(device) if weighted else None
    wanted = fit_scales_in_torch(residual, grid, dtype, importance, sweep)
    values, count = (
        torch.full_like(residual, torch.nan),
        len(SCALE_RATIOS if grid is INT4 else E4M3_STEPS) if sweep else 1,
    )
    found = fit_group_scales(
        residual,
        grid.high,
        group_size=grid.group_size,
        count=count,
        dtype=dtype,
        importance=importance,
        tensor=wanted.tensor,
        values=values,
    )
    assert found.dtype == wanted.groups.dtype
    same = found.float() == wanted.groups.float()
    assert same.float().mean() > 0.99  # two candidates may come out equal but for the order of a sum
    expected = units_to_values(round_to_units(residual, wanted, grid), wanted, grid)
    whole = same.repeat_interleave(grid.group_size, dim=1)
    torch.testing.assert_close(values[whole], expected[whole], rtol=1e-6, atol=0)
    assert (values[1, :64] == 0).all()


def test_gaps_are_refused(device):
    with pytest.raises(ValueError, match="contiguous"):
        fit_group_scales(torch.zeros(128, 16, device=device).T, 7.0, group_size=64, count=1, dtype=torch.float16)
    with pytest.raises(ValueError, match="multiples of 64"):
        fit_group_scales(torch.zeros(16, 96, device=device), 7.0, group_size=16, count=1, dtype=torch.float16)
