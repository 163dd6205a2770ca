"""quantize_act_int8: the codes and scales of the reference bit for bit, the projection within its tolerance."""

import pytest
import torch
from compare import assert_close, assert_same
from problems import REAL, SMALL, activations, branch

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.step.quantize_act_int8 import quantize_act_int8
from svdquant_pack.kernels.tiles import Projection

SHAPES = [*SMALL, *(pytest.param(*shape, marks=pytest.mark.gpu) for shape in REAL)]


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
@pytest.mark.parametrize("act_unsigned", [False, True])
@pytest.mark.parametrize("R", [0, 16, 48])
def test_codes_and_scales_are_exact(M, N, K, act_unsigned, R, dtype, device):
    x = activations(M, K, dtype, device)
    smooth_factor, proj_down, _ = branch(N, K, R, dtype, device)
    codes, ascales, x_down = quantize_act_int8(x, smooth_factor, proj_down, act_unsigned)
    wanted = reference.quantize_act_int8(x, smooth_factor, proj_down, act_unsigned)
    assert_same(codes, wanted[0])
    assert_same(ascales, wanted[1])
    assert_close(x_down, wanted[2], op="x_down")


@pytest.mark.parametrize("R", [16, 48])
def test_the_projection_fused_into_the_quantizer_is_the_same(R, dtype, device):
    """Which the GPU at hand may not choose."""
    x = activations(19, 192, dtype, device)
    smooth_factor, proj_down, _ = branch(8, 192, R, dtype, device)
    codes, ascales, x_down = quantize_act_int8(x, smooth_factor, proj_down, projection=Projection.FUSED)
    wanted = reference.quantize_act_int8(x, smooth_factor, proj_down)
    assert_same(codes, wanted[0])
    assert_same(ascales, wanted[1])
    assert_close(x_down, wanted[2], op="x_down")


@pytest.mark.parametrize("gelu", [False, True])
def test_the_projection_by_a_product_of_its_own_is_the_same(gelu, dtype, device):
    x = activations(19, 192, dtype, device)
    smooth_factor, proj_down, _ = branch(8, 192, 16, dtype, device)
    codes, _, x_down = quantize_act_int8(x, smooth_factor, proj_down, False, gelu, projection=Projection.APART)
    wanted = reference.quantize_act_int8(x, smooth_factor, proj_down, False, gelu)
    assert (codes.int() - wanted[0].int()).abs().max() <= gelu
    assert_close(x_down, wanted[2], op="x_down behind GELU" if gelu else "x_down")


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
@pytest.mark.parametrize(("act_unsigned", "gelu"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("R", [16, 48, 128, 144])
def test_the_projection_in_shares_is_the_same(M, N, K, act_unsigned, gelu, R, dtype, device):
    x = activations(M, K, dtype, device)
    smooth_factor, proj_down, _ = branch(N, K, R, dtype, device)
    codes, ascales, x_down = quantize_act_int8(
        x, smooth_factor, proj_down, act_unsigned, gelu, projection=Projection.SHARED
    )
    wanted = reference.quantize_act_int8(x, smooth_factor, proj_down, act_unsigned, gelu)
    assert_close(x_down, wanted[2], op="x_down behind GELU" if gelu else "x_down")
    if gelu:
        assert (codes.int() - wanted[0].int()).abs().max() <= 1
        return
    assert_same(codes, wanted[0])
    assert_same(ascales, wanted[1])


@pytest.mark.parametrize("R", [0, 32])
def test_gelu_comes_first(R, dtype, device):
    x = activations(19, 192, dtype, device)
    smooth_factor, proj_down, _ = branch(8, 192, R, dtype, device)
    codes, ascales, x_down = quantize_act_int8(x, smooth_factor, proj_down, act_unsigned=True, gelu=True)
    wanted = reference.quantize_act_int8(x, smooth_factor, proj_down, act_unsigned=True, gelu=True)
    moved = (codes.int() - wanted[0].int()).abs()
    assert moved.max() <= 1 and (moved > 0).float().mean() < 1e-2
    assert torch.allclose(ascales, wanted[1], rtol=2**-8)
    assert_close(x_down, wanted[2], op="x_down behind GELU")
    plain, _, _ = quantize_act_int8(x, smooth_factor, proj_down, act_unsigned=True)
    assert not torch.equal(plain, codes)


def test_other_smoothing_types_divide_as_exactly(dtype, device):
    x = activations(19, 192, dtype, device)
    _, proj_down, _ = branch(8, 192, 0, dtype, device)
    smooth_factor = torch.rand(192, device=device) + 0.3  # float32
    codes, ascales, _ = quantize_act_int8(x, smooth_factor, proj_down)
    wanted = reference.quantize_act_int8(x, smooth_factor, proj_down)
    assert_same(codes, wanted[0])
    assert_same(ascales, wanted[1])


def test_rows_may_be_apart(dtype, device):
    wide = activations(19, 320, dtype, device)
    smooth_factor, proj_down, _ = branch(8, 192, 16, dtype, device)
    part = wide[:, 64:256]
    whole = quantize_act_int8(part.contiguous(), smooth_factor, proj_down)
    for actual, wanted in zip(quantize_act_int8(part, smooth_factor, proj_down), whole, strict=True):
        assert_same(actual, wanted)
