"""Norms: torch's values, of heads and rows that are apart as well, for every eps that torch knows."""

import pytest
import torch
import torch.nn.functional as F
from compare import TOLERANCES, assert_close

pytest.importorskip("triton")
from svdquant_pack.kernels.step.norm import default_eps, layer_norm, rms_norm

_ORDER = "float32 sums in another order: a value at a rounding boundary may land on the next 16-bit one"
TOLERANCES |= {("norm", torch.bfloat16): (2e-4, _ORDER), ("norm", torch.float16): (3e-5, _ORDER)}


def heads(shape, dtype, device):
    """Queries as FLUX has them: a part of a wider row, heads before tokens."""
    B, H, L, D = shape
    wide = torch.randn(B, L, 3 * H * D + 64, device=device) * torch.rand(B, L, 1, device=device) * 4
    return wide.to(dtype)[..., : 3 * H * D].view(B, L, 3, H, D).permute(2, 0, 3, 1, 4)[1]


@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 3, 9, 128), (1, 5, 17, 64), (1, 3, 0, 128)])
@pytest.mark.parametrize("eps", [1e-6, None])
def test_rms_norm_is_torchs(shape, eps, dtype, device):
    x, weight = heads(shape, dtype, device), (torch.rand(shape[-1], device=device) + 0.5).to(dtype)
    if x.numel():
        x[0, 0, 0] = 0
    out = rms_norm(x, weight, eps)
    assert out.is_contiguous() and out.dtype == dtype
    assert_close(out, F.rms_norm(x, (shape[-1],), weight, eps), op="norm")


def test_without_eps_small_values_come_out_as_torchs(dtype, device):
    x, weight = heads((1, 2, 3, 64), dtype, device) * 1e-3, torch.ones(64, device=device, dtype=dtype)
    assert_close(rms_norm(x, weight, None), F.rms_norm(x, (64,), weight), op="norm")
    assert default_eps(dtype, device) in (torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("shape", [(2, 3, 9, 96), (2, 9, 128), (1, 2, 3, 1024)])
def test_other_heads_are_left_to_torch(shape, dtype, device):
    x, weight = torch.randn(shape, device=device).to(dtype), torch.rand(shape[-1], device=device).to(dtype)
    assert torch.equal(rms_norm(x, weight, 1e-6), F.rms_norm(x, shape[-1:], weight, 1e-6))


def test_a_weight_of_another_width_is_torchs_error(dtype, device):
    with pytest.raises(RuntimeError, match="shape"):
        rms_norm(torch.randn(1, 2, 3, 64, device=device).to(dtype), torch.ones(32, device=device, dtype=dtype), 1e-6)


@pytest.mark.parametrize("shape", [(1, 16), (2, 5, 72), (3, 1152), (0, 64)])
def test_layer_norm_is_torchs(shape, dtype, device):
    x = (torch.randn(shape, device=device) * 3 + 10).to(dtype)
    out = layer_norm(x, 1e-6)
    assert out.is_contiguous() and out.dtype == dtype
    assert_close(out, F.layer_norm(x, shape[-1:], eps=1e-6), op="norm")


def test_rows_that_are_apart_are_left_to_torch(dtype, device):
    x = torch.randn(4, 144, device=device).to(dtype)[:, 72:]
    assert torch.equal(layer_norm(x, 1e-6), F.layer_norm(x, (72,), eps=1e-6))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [512, 4608 + 17])
def test_a_whole_flux_layer(tokens, dtype, device):
    x, weight = heads((1, 24, tokens, 128), dtype, device), torch.rand(128, device=device).to(dtype)
    assert_close(rms_norm(x, weight, None), F.rms_norm(x, (128,), weight), op="norm")
    x = torch.randn(tokens, 3072, device=device).to(dtype)
    assert_close(layer_norm(x, 1e-6), F.layer_norm(x, (3072,), eps=1e-6), op="norm")
