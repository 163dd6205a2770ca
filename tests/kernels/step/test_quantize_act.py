"""quantize_act: the codes and scales of the reference bit for bit, the projection within its tolerance."""

import pytest
import torch
from compare import assert_close, assert_same
from problems import REAL, SMALL, activations, branch

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.format import GROUP_SIZE_INT4, GROUP_SIZE_NVFP4
from svdquant_pack.kernels.packing import unpack_int4, unpack_uint4
from svdquant_pack.kernels.step.fragments import to_activation_fragments
from svdquant_pack.kernels.step.quantize_act import quantize_act
from svdquant_pack.kernels.tiles import quantizer_tile

SHAPES = [*SMALL, *(pytest.param(*shape, marks=pytest.mark.gpu) for shape in REAL)]


def expected(x, smooth_factor, proj_down, scheme, *, act_unsigned=False, gelu=False):
    if scheme == "nvfp4":
        codes, ascales, x_down = reference.quantize_act_nvfp4(x, smooth_factor, proj_down, gelu)
        return codes, ascales.view(torch.uint8), x_down
    return reference.quantize_act_int4(x, smooth_factor, proj_down, act_unsigned, gelu)


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
@pytest.mark.parametrize(("scheme", "act_unsigned"), [("int4", False), ("int4", True), ("nvfp4", False)])
@pytest.mark.parametrize("R", [0, 16, 48])
def test_codes_and_scales_are_exact(M, N, K, scheme, act_unsigned, R, dtype, device):
    x = activations(M, K, dtype, device)
    smooth_factor, proj_down, _ = branch(N, K, R, dtype, device)
    codes, ascales, x_down = quantize_act(
        x, smooth_factor, proj_down, scheme, output="packed", act_unsigned=act_unsigned
    )
    wanted = expected(x, smooth_factor, proj_down, scheme, act_unsigned=act_unsigned)
    assert_same(codes, wanted[0])
    assert ascales.shape == wanted[1].shape
    assert_same(ascales.flatten(), wanted[1].flatten())
    assert_close(x_down, wanted[2], op="x_down")


@pytest.mark.parametrize("R", [16, 48])
@pytest.mark.parametrize("scheme", ["int4", "nvfp4"])
def test_the_projection_fused_into_the_quantizer_is_the_same(R, scheme, dtype, device):
    """The tile that the GPU at hand does not choose."""
    x = activations(19, 192, dtype, device)
    smooth_factor, proj_down, _ = branch(8, 192, R, dtype, device)
    codes, ascales, x_down = quantize_act(x, smooth_factor, proj_down, scheme, tile=quantizer_tile(192, R))
    wanted = expected(x, smooth_factor, proj_down, scheme)
    assert_same(codes, wanted[0])
    assert_same(ascales, wanted[1])
    assert_close(x_down, wanted[2], op="x_down")


@pytest.mark.parametrize("act_unsigned", [False, True])
def test_one_code_a_byte_holds_the_same_codes(act_unsigned, dtype, device):
    x = activations(19, 192, dtype, device)
    smooth_factor, proj_down, _ = branch(8, 192, 0, dtype, device)
    codes, ascales, _ = quantize_act(x, smooth_factor, proj_down, "int4", output="int8", act_unsigned=act_unsigned)
    packed, wanted, _ = expected(x, smooth_factor, proj_down, "int4", act_unsigned=act_unsigned)
    assert_same(codes, unpack_uint4(packed).view(torch.int8) if act_unsigned else unpack_int4(packed))
    assert_same(ascales, wanted)


@pytest.mark.parametrize("scheme", ["int4", "nvfp4", "none"])
@pytest.mark.parametrize("R", [0, 32])
def test_float_output_is_code_times_scale_with_the_projection_behind(scheme, R, dtype, device):
    x = activations(19, 192, dtype, device)
    smooth_factor, proj_down, _ = branch(8, 192, R, dtype, device)
    values, _, _ = quantize_act(x, smooth_factor, proj_down, scheme, output="float")
    assert values.shape == (19, 192 + R)
    if scheme == "none":
        wanted, x_down = reference.smooth_act(x, smooth_factor), (x.float() @ proj_down.float()).to(dtype)
    else:
        codes, ascales, x_down = expected(x, smooth_factor, proj_down, scheme)
        ascales = ascales if scheme == "int4" else ascales.view(torch.float8_e4m3fn)
        unpacked = unpack_int4(codes).float() if scheme == "int4" else reference.decode_e2m1(unpack_uint4(codes))
        group_size = GROUP_SIZE_INT4 if scheme == "int4" else GROUP_SIZE_NVFP4
        wanted = (unpacked.view(19, -1, group_size) * ascales.float().T[..., None]).view(19, 192).to(dtype)
    assert_same(values[:, :192].contiguous() + 0, wanted + 0)  # + 0: -0.0 and 0.0 are one value here
    assert_close(values[:, 192:], x_down, op="x_down")


@pytest.mark.parametrize("act_unsigned", [False, True])
@pytest.mark.parametrize("R", [0, 32])
def test_gelu_comes_first(act_unsigned, R, dtype, device):
    x = activations(19, 192, dtype, device).clamp(-30, 30)
    smooth_factor, proj_down, _ = branch(8, 192, R, dtype, device)
    values, _, _ = quantize_act(
        x, smooth_factor, proj_down, "int4", output="float", act_unsigned=act_unsigned, gelu=True
    )
    codes, ascales, x_down = expected(x, smooth_factor, proj_down, "int4", act_unsigned=act_unsigned, gelu=True)
    unpacked = unpack_uint4(codes) if act_unsigned else unpack_int4(codes)
    wanted = (unpacked.float().view(19, -1, 64) * ascales.float().T[..., None]).view(19, 192)
    error = (values[:, :192].float() - wanted).abs() / ascales.float().T.repeat_interleave(64, dim=1).clamp(min=1e-6)
    assert (error > 0.5).float().mean() < 1e-3, "more than one code in a thousand moved"
    assert error.max() < 1.5, "a code moved by more than one"
    assert_close(values[:, 192:], x_down, op="x_down behind GELU")


def test_the_shift_is_live(dtype, device):
    x = activations(19, 192, dtype, device)
    smooth_factor, proj_down, _ = branch(8, 192, 0, dtype, device)
    plain, shifted = (
        quantize_act(x, smooth_factor, proj_down, "none", output="float", act_unsigned=on)[0] for on in (False, True)
    )
    assert not torch.equal(plain, shifted)
    assert_same(shifted, reference.smooth_act(x, smooth_factor, act_unsigned=True))


def test_rows_may_be_apart(dtype, device):
    wide = activations(19, 320, dtype, device)
    smooth_factor, proj_down, _ = branch(8, 192, 16, dtype, device)
    part = wide[:, 64:256]
    for whole, slice_ in zip(
        quantize_act(part.contiguous(), smooth_factor, proj_down, "int4"),
        quantize_act(part, smooth_factor, proj_down, "int4"),
        strict=True,
    ):
        assert_same(slice_, whole)


def test_padded_rows_leave_the_others_alone(dtype, device):
    x = activations(19, 192, dtype, device)
    smooth_factor, proj_down, _ = branch(8, 192, 16, dtype, device)
    codes, ascales, x_down = quantize_act(x, smooth_factor, proj_down, "int4", pad_rows=128)
    assert codes.shape == (128, 96) and ascales.shape == (3, 128) and x_down.shape == (19, 16)
    wanted = expected(x, smooth_factor, proj_down, "int4")
    assert_same(codes[:19], wanted[0])
    assert_same(ascales[:, :19].contiguous(), wanted[1])


@pytest.mark.parametrize(("M", "K", "R"), [(19, 192, 16), (33, 320, 0), (128, 512, 48)])
@pytest.mark.parametrize("act_unsigned", [False, True])
def test_fragments_are_the_packed_codes_in_another_order(M, K, R, act_unsigned, dtype, device):
    x = activations(M, K, dtype, device)
    smooth_factor, proj_down, _ = branch(8, K, R, dtype, device)
    operands, options = (x, smooth_factor, proj_down, "int4"), {"act_unsigned": act_unsigned, "pad_rows": 128}
    packed, *others = quantize_act(*operands, **options)
    fragments, *same = quantize_act(*operands, output="fragments", **options)
    of_rows = torch.arange(128, device=device)[:, None].expand_as(packed) < M
    kept = to_activation_fragments(of_rows.to(torch.int8).contiguous()) != 0
    assert kept.sum() == M * K // 8 and fragments.shape == kept.shape
    assert_same(fragments[kept], to_activation_fragments(packed)[kept])
    assert_same(same[0][:, :M].contiguous(), others[0][:, :M].contiguous())
    assert_same(same[1], others[1])


@pytest.mark.gpu
def test_more_than_2_31_elements(device):
    """The last rows of a tensor whose offsets do not fit 32 bits."""
    M, K = 2**31 // 3072 + 40, 3072
    x = torch.zeros(M, K, dtype=torch.bfloat16, device=device)
    x[-32:] = activations(32, K, torch.bfloat16, device)
    smooth_factor, proj_down, _ = branch(8, K, 32, torch.bfloat16, device)
    codes, ascales, x_down = quantize_act(x, smooth_factor, proj_down, "int4")
    wanted = expected(x[-32:], smooth_factor, proj_down, "int4")
    assert_same(codes[-32:], wanted[0])
    assert_same(ascales[:, -32:].contiguous(), wanted[1])
    assert_close(x_down[-32:], wanted[2], op="x_down")
