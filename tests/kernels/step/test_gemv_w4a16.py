"""gemv_w4a16: weights never rounded, so only the order of float32 sums differs from the reference."""

import pytest
import torch
from compare import assert_close
from problems import branch, e4m3_scales, packed_codes, scales

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.step.gemv_w4a16 import gemv_w4a16
from svdquant_pack.kernels.tiles import GEMV_ROWS

SHAPES = [(64, 64), (72, 192), (40, 2048), pytest.param(18432, 3072, marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("N", "K"), SHAPES)
@pytest.mark.parametrize("M", range(1, GEMV_ROWS + 1))
@pytest.mark.parametrize("has_bias", [False, True])
def test_awq_matches_reference(M, N, K, has_bias, dtype, device):
    x, qweight = torch.randn(M, K, device=device).to(dtype), packed_codes(N, K, device)
    wscales, wzeros = scales(N, K, dtype, device), scales(N, K, dtype, device) - 0.05
    bias = torch.randn(N, device=device).to(dtype) if has_bias else None
    wanted = reference.gemm_awq(x, qweight, wscales, wzeros, bias)
    assert_close(gemv_w4a16(x, qweight, wscales, "awq", bias=bias, wzeros=wzeros), wanted, op="gemm_awq")


@pytest.mark.parametrize("act_unsigned", [False, True])
@pytest.mark.parametrize("scheme", ["int4", "nvfp4"])
def test_svdquant_layers_match_reference(scheme, act_unsigned, dtype, device):
    M, N, K, R = 3, 72, 192, 32
    x, qweight = torch.randn(M, K, device=device).to(dtype), packed_codes(N, K, device)
    smooth_factor, proj_down, proj_up = branch(N, K, R, dtype, device)
    bias = torch.randn(N, device=device).to(dtype)
    if scheme == "int4":
        wscales, extra = scales(N, K, dtype, device), {}
        weight = reference.dequantize_int4(qweight, wscales)
    else:
        wscales, extra = e4m3_scales(N, K, device), {"wcscales": (torch.rand(N, device=device) + 0.5).to(dtype)}
        weight = reference.dequantize_nvfp4(qweight, wscales, **extra)
    wanted = reference.gemm_w4a16(
        x, smooth_factor, weight, proj_down=proj_down, proj_up=proj_up, bias=bias, act_unsigned=act_unsigned
    )
    actual = gemv_w4a16(
        x,
        qweight,
        wscales,
        scheme,
        bias=bias,
        smooth_factor=smooth_factor,
        act_unsigned=act_unsigned,
        x_down=(x.float() @ proj_down.float()).to(dtype),
        proj_up=proj_up,
        **extra,
    )
    assert_close(actual, wanted, op="gemm_w4a16")


def test_too_many_rows_are_refused(device):
    x, qweight = torch.zeros(GEMV_ROWS + 1, 64, device=device).half(), packed_codes(64, 64, device)
    with pytest.raises(ValueError, match="at most"):
        gemv_w4a16(
            x,
            qweight,
            scales(64, 64, torch.float16, device),
            "awq",
            bias=None,
            wzeros=scales(64, 64, torch.float16, device),
        )
