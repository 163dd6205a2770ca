"""gemm_w4a8 and its Hopper form: exact integer sums, the reference within the order of float32 sums."""

import pytest
import torch
from compare import assert_close, assert_same
from problems import REAL, SMALL, activations, branch, packed_codes, scales

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.devices import generation
from svdquant_pack.kernels.gemm_w4a8 import gemm_w4a8

SHAPES = [*SMALL, *(pytest.param(*shape, marks=pytest.mark.gpu) for shape in REAL)]


def portable():
    return gemm_w4a8


def hopper():
    if not torch.cuda.is_available() or generation(torch.device("cuda", 0)) != "sm_90":
        pytest.skip("needs a Hopper GPU")
    from svdquant_pack.kernels.gemm_w4a8_hopper import gemm_w4a8_hopper

    return gemm_w4a8_hopper


@pytest.fixture(params=[portable, hopper], ids=["portable", "hopper"])
def gemm(request):
    return request.param()


def problem(M, N, K, R, dtype, device):
    smooth_factor, proj_down, proj_up = branch(N, K, R, dtype, device)
    quantized = reference.quantize_act_int8(activations(M, K, dtype, device), smooth_factor, proj_down)
    weight = reference.dequantize_int4(packed_codes(N, K, device), scales(N, K, dtype, device))
    qx, ascales, x_down = quantized
    return qx, ascales, *reference.requantize_int8(weight), x_down, proj_up


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
@pytest.mark.parametrize("R", [0, 16, 48, 128])
@pytest.mark.parametrize("has_bias", [False, True])
def test_matches_reference(gemm, M, N, K, R, has_bias, dtype, device):
    arguments = problem(M, N, K, R, dtype, device)
    bias = torch.randn(N, device=device).to(dtype) if has_bias else None
    assert_close(gemm(*arguments, bias), reference.gemm_w4a8(*arguments, bias), op="gemm_w4a8")


def test_integer_sums_are_exact(gemm, device):
    """With unit scales and sums below 2^11 the float16 output is the integer sum itself, at any position."""
    M, N, K = 70, 136, 128
    qx = torch.randint(-3, 4, (M, K), device=device, dtype=torch.int8)
    qweight = torch.randint(-3, 4, (N, K), device=device, dtype=torch.int8)
    none = torch.empty(0, device=device, dtype=torch.float16)
    out = gemm(
        qx, torch.ones(M, device=device), qweight, torch.ones(N, device=device), none.view(M, 0), none.view(N, 0)
    )
    assert_same(out, (qx.float() @ qweight.float().T).half())


def test_low_rank_branch_is_live(gemm, dtype, device):
    *arguments, x_down, proj_up = problem(33, 72, 192, 16, dtype, device)
    assert not torch.equal(gemm(*arguments, x_down, proj_up), gemm(*arguments, x_down, torch.zeros_like(proj_up)))


def test_rows_of_the_result_may_be_apart(gemm, dtype, device):
    arguments = problem(33, 72, 192, 16, dtype, device)
    wide = torch.full((33, 200), 7.0, dtype=dtype, device=device)
    out = gemm(*arguments, None, wide[:, 64:136])
    assert out.data_ptr() == wide[:, 64:].data_ptr()
    assert_same(out.contiguous(), gemm(*arguments))
    assert bool((wide[:, :64] == 7).all()) and bool((wide[:, 136:] == 7).all())
