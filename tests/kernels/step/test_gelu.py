"""gelu: torch's values, of rows that are apart as well."""

import pytest
import torch
from compare import assert_close

pytest.importorskip("triton")
from svdquant_pack.kernels.step.gelu import gelu


@pytest.mark.parametrize("shape", [(5, 72), (1, 7, 2100), (2, 7, 72), (0, 72), (3, 2, 5, 8)])
@pytest.mark.parametrize("apart", [False, True])
def test_same_as_in_torch(shape, apart, dtype, device):
    wide = (torch.randn(*shape[:-1], shape[-1] + 24, device=device) * 3).to(dtype)
    x = wide[..., 24:] if apart else wide[..., 24:].contiguous()
    out = gelu(x)
    assert out.is_contiguous() or x.ndim == 4
    assert_close(out, torch.nn.functional.gelu(x.float(), approximate="tanh").to(dtype), op="x_down behind GELU")


def test_rows_in_another_order(dtype, device):
    x = torch.randn(4, 3, 72, device=device).to(dtype).transpose(0, 1)
    assert_close(gelu(x), torch.nn.functional.gelu(x.float(), approximate="tanh").to(dtype), op="x_down behind GELU")
    x = torch.randn(72, 6, device=device).to(dtype).T
    assert_close(gelu(x), torch.nn.functional.gelu(x.float(), approximate="tanh").to(dtype), op="x_down behind GELU")
