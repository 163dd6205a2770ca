"""requantize_weight, alone and along with the activations: int8 codes and scales of the reference, bit for bit."""

import pytest
import torch
from compare import assert_same
from problems import REAL, SMALL, activations, branch, e4m3_scales, packed_codes, scales

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.step.quantize_act_int8 import quantize_act_int8
from svdquant_pack.kernels.step.requantize_weight import plan_requantization, requantize_weight

SHAPES = [shape[1:] for shape in SMALL] + [pytest.param(*shape[1:], marks=pytest.mark.gpu) for shape in REAL[:4]]


@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_int4_is_exact(N, K, dtype, device):
    qweight, wscales = packed_codes(N, K, device), scales(N, K, dtype, device)
    qweight[N // 2] = 0  # a channel of zeros
    wanted = reference.requantize_int8(reference.dequantize_int4(qweight, wscales))
    codes, channel_scales = requantize_weight({"qweight": qweight, "wscales": wscales}, "int4")
    assert_same(codes, wanted[0])
    assert_same(channel_scales, wanted[1])
    known = {"qweight": qweight, "wscales": wscales, "channel_scales": channel_scales}
    again, _ = requantize_weight(known, "int4")
    assert_same(again, wanted[0])


@pytest.mark.parametrize("factor", ["none", "wtscale", "wcscales", "both"])
def test_nvfp4_is_exact(factor, dtype, device):
    N, K = 72, 192
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
    wanted = reference.requantize_int8(reference.dequantize_nvfp4(qweight, wscales, **extra))
    codes, channel_scales = requantize_weight({"qweight": qweight, "wscales": wscales, **extra}, "nvfp4")
    assert_same(codes, wanted[0])
    assert_same(channel_scales, wanted[1])


@pytest.mark.parametrize(("M", "N", "K"), [*SMALL, *(pytest.param(*shape, marks=pytest.mark.gpu) for shape in REAL)])
@pytest.mark.parametrize("R", [0, 32, 144])
def test_along_with_activations_is_the_same(M, N, K, R, dtype, device):
    x = activations(M, K, dtype, device)
    smooth_factor, proj_down, _ = branch(N, K, R, dtype, device)
    weight = {"qweight": packed_codes(N, K, device), "wscales": scales(N, K, dtype, device)}
    plan = plan_requantization(weight, "int4")
    activation = quantize_act_int8(x, smooth_factor, proj_down, weight=plan)
    codes, channel_scales = plan.weight
    for actual, wanted in zip(activation, quantize_act_int8(x, smooth_factor, proj_down), strict=True):
        assert_same(actual, wanted)
    wanted = requantize_weight(weight, "int4")
    assert_same(codes, wanted[0])
    assert_same(channel_scales, wanted[1])
    known = plan_requantization({**weight, "channel_scales": channel_scales}, "int4")
    quantize_act_int8(x, smooth_factor, proj_down, weight=known)
    assert_same(known.weight.codes, wanted[0])
