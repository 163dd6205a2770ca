"""join_factors: what torch.cat makes, with zeros behind it."""

import pytest
import torch
from compare import assert_same

pytest.importorskip("triton")
from svdquant_pack.kernels.step.join_factors import join_factors


@pytest.mark.parametrize(("R", "L"), [(32, 16), (0, 16), (32, 5), (16, 1), (64, 200)])
def test_columns_stand_side_by_side(R, L, dtype, device):
    K, N = 200, 328
    own = [torch.randn(rows, R, device=device).to(dtype) for rows in (K, N)]
    lora = [torch.randn(rows, L + 3, device=device).to(dtype)[:, :L] for rows in (K, N)]
    joined = join_factors(own[0], lora[0], own[1], lora[1])
    for found, left, right in zip(joined, own, lora, strict=True):
        zeros = torch.zeros(left.shape[0], -(R + L) % 16, dtype=dtype, device=device)
        assert_same(found, torch.cat((left, right, zeros), dim=1))


def test_the_lora_chooses_the_type(device):
    own, lora = torch.randn(64, 16, device=device).half(), torch.randn(64, 16, device=device)
    down, up = join_factors(own, lora, own, lora)
    assert down.dtype == up.dtype == torch.float32
    assert_same(down, torch.cat((own.float(), lora), dim=1))
