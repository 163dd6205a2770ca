"""unpack_weight: expanded codes and 16-bit weights of the reference, bit for bit."""

import pytest
import torch
from compare import assert_same
from problems import REAL, SMALL, e4m3_scales, packed_codes, scales

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.packing import unpack_int4
from svdquant_pack.kernels.step.unpack_weight import dequantize_weight, expand_codes

SHAPES = [shape[1:] for shape in SMALL] + [pytest.param(*shape[1:], marks=pytest.mark.gpu) for shape in REAL[:4]]


def nvfp4_weight(N, K, factor, dtype, device):
    """qweight, wscales and one kind of outer factor, with the dequantized weight."""
    qweight, wscales = packed_codes(N, K, device), e4m3_scales(N, K, device)
    extra = {
        "none": {},
        "wtscale": {"wtscale": torch.rand(1, device=device) + 0.5},
        "wcscales": {"wcscales": (torch.rand(N, device=device) + 0.5).to(dtype)},
        "both": {
            "wtscale": torch.rand(1, device=device) + 0.5,
            "wcscales": (torch.rand(N, device=device) + 0.5).to(dtype),
        },
    }[factor]
    return qweight, wscales, extra, reference.dequantize_nvfp4(qweight, wscales, **extra)


@pytest.mark.parametrize(("N", "K"), SHAPES)
@pytest.mark.parametrize("R", [0, 16, 48])
def test_dequantized_int4_with_the_factors_behind(N, K, R, dtype, device):
    qweight, wscales = packed_codes(N, K, device), scales(N, K, dtype, device)
    proj_up = torch.randn(N, R, device=device).to(dtype)
    weight = reference.dequantize_int4(qweight, wscales).to(dtype)
    actual = dequantize_weight(qweight, wscales, "int4", dtype, proj_up=proj_up)
    assert_same(actual + 0, torch.cat((weight, proj_up), dim=1) + 0)  # + 0: -0.0 and 0.0 are one value here


@pytest.mark.parametrize("factor", ["none", "wtscale", "wcscales", "both"])
def test_dequantized_nvfp4_is_exact(factor, dtype, device):
    qweight, wscales, extra, weight = nvfp4_weight(72, 192, factor, dtype, device)
    assert_same(dequantize_weight(qweight, wscales, "nvfp4", dtype, **extra) + 0, weight.to(dtype) + 0)


def test_dequantized_awq_is_exact(dtype, device):
    qweight, wscales = packed_codes(72, 192, device), scales(72, 192, dtype, device)
    wzeros = torch.randn_like(wscales)
    wanted = reference.dequantize_awq(qweight, wscales, wzeros).to(dtype)
    assert_same(dequantize_weight(qweight, wscales, "awq", dtype, wzeros=wzeros) + 0, wanted + 0)


def test_expanded_codes_are_the_codes(device):
    qweight = packed_codes(72, 192, device)
    assert_same(expand_codes(qweight), unpack_int4(qweight))
    assert expand_codes(torch.tensor([[-128] * 32], dtype=torch.int8, device=device))[0, :2].tolist() == [0, -8]
