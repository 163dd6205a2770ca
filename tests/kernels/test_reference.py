"""The reference arithmetic against numbers from elsewhere: worked-out cases, an emulation of nunchaku's kernels made
outside this project (tests/data/*_forward_ref), and comfy-kitchen's own SVDQuant operation."""

import pytest
import torch
from compare import assert_same, relative_rms_error
from layer_calls import run_layer
from safetensors.torch import load_file
from tiny_files import DATA, HOST_NAMES

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.format import E2M1_VALUES, GELU_SHIFT
from svdquant_pack.kernels.packing import pack_nibbles, unpack_int4, unpack_uint4
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint

MODES = ("w4a4", "w4a8", "w4a16")


def draw_layer(N=192, K=256, R=32, seed=0, dtype=torch.bfloat16):
    g = torch.Generator().manual_seed(seed)
    return {
        "qweight": pack_nibbles(torch.randint(-8, 8, (N, K), generator=g)),
        "wscales": (torch.rand(K // 64, N, generator=g) * 0.02 + 0.01).to(dtype),
        "smooth_factor": (torch.rand(K, generator=g) + 0.5).to(dtype),
        "proj_down": (torch.randn(K, R, generator=g) * K**-0.5).to(dtype),
        "proj_up": (torch.randn(N, R, generator=g) * 0.2).to(dtype),
        "bias": torch.randn(N, generator=g).to(dtype),
    }


def draw_tokens(M=9, K=256, seed=1, dtype=torch.bfloat16):
    return torch.randn(M, K, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ---------------------------------------------------------------------------------------------- worked-out cases


def test_e2m1_rounds_to_nearest_even_and_saturates():
    values = torch.tensor([0.0, 0.24, 0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.1, 7.0, -0.6, -100.0])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0, -0.5, -6.0])
    assert_same(reference.decode_e2m1(reference.encode_e2m1(values)), expected)


def test_e2m1_codes_are_their_own_values():
    codes = torch.arange(16, dtype=torch.uint8)
    values = torch.tensor(E2M1_VALUES + tuple(-v for v in E2M1_VALUES))
    assert_same(reference.decode_e2m1(codes), values)
    assert_same(reference.encode_e2m1(values), codes)


def test_int4_activation_group_by_hand():
    x = torch.zeros(1, 64)
    x[0, :4] = torch.tensor([7.0, -3.5, 1.0, 0.49])
    qx, ascales, _ = reference.quantize_act_int4(x, torch.ones(64), torch.zeros(64, 0))
    assert unpack_int4(qx)[0, :5].tolist() == [7, -4, 1, 0, 0]  # -3.5 is a tie and goes to the even code
    assert ascales.item() == pytest.approx(1.0)


def test_unsigned_activation_is_shifted_before_smoothing():
    x = torch.full((1, 64), -GELU_SHIFT)
    x[0, 0] = 15 * 2.0 - GELU_SHIFT
    qx, ascales, x_down = reference.quantize_act_int4(x, torch.full((64,), 2.0), torch.ones(64, 1), act_unsigned=True)
    assert unpack_uint4(qx)[0, :2].tolist() == [15, 0]
    assert ascales.item() == pytest.approx(1.0)
    assert x_down.item() == pytest.approx(30 - 64 * GELU_SHIFT)  # the branch sees x before the shift


@pytest.mark.parametrize("quantize", ["quantize_act_int4", "quantize_act_int8", "quantize_act_nvfp4"])
def test_zero_tokens_give_zero_codes_and_scales(quantize):
    qx, ascales, _ = getattr(reference, quantize)(torch.zeros(3, 128), torch.ones(128), torch.zeros(128, 16))
    assert not qx.any() and not ascales.float().any()


def test_int8_requantization_by_hand():
    weight = torch.tensor([[1.27, -0.635, 0.01], [0.0, 0.0, 0.0]])
    codes, scales = reference.requantize_int8(weight)
    assert codes.tolist() == [[127, -64, 1], [0, 0, 0]] or codes.tolist() == [[127, -63, 1], [0, 0, 0]]
    assert scales.tolist() == pytest.approx([0.01, 0.0])


def test_int8_sums_are_exact_where_float32_is_not():
    a = torch.full((1, 4096), 127, dtype=torch.int8)
    b = torch.full((1, 4096), 127, dtype=torch.int8)
    b[0, 0] = 126  # an odd total above 2^24, which float32 cannot hold
    out = reference._matmul_int8(a, b)
    assert out.item() == 127 * 127 * 4095 + 127 * 126


def test_awq_weight_by_hand():
    codes = torch.arange(64, dtype=torch.uint8)[None] % 16
    weight = reference.dequantize_awq(pack_nibbles(codes), torch.tensor([[0.5]]), torch.tensor([[-3.5]]))
    assert weight[0, :4].tolist() == [-3.5, -3.0, -2.5, -2.0]


# --------------------------------------------------------------------------------------- against other people


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_codes_and_outputs_of_the_emulated_nunchaku_kernels(precision):
    model = read_checkpoint(Checkpoint(DATA / f"flux_tiny_{precision}_r32.safetensors"))
    expected = load_file(DATA / f"flux_tiny_{precision}_forward_ref.safetensors")
    layers = sorted({name.rpartition(".")[0] for name in expected if name.endswith(".y")})
    assert len(layers) == 6
    for name in layers:
        host, index = HOST_NAMES[name]
        part = model.layers[host].parts[index]
        bias = part.get("bias") if host.endswith("linear2") and index == 0 else model.layers[host].bias
        x = expected["x_gelu" if "fc2" in name else "x"]
        act = (x, part["smooth_factor"], part["proj_down"])
        if precision == "int4":
            qx, ascales, x_down = reference.quantize_act_int4(*act, part.act_unsigned)
            codes = unpack_uint4(qx).to(torch.int8) if part.act_unsigned else unpack_int4(qx)
            out = reference.gemm_w4a4(
                qx,
                ascales,
                part["qweight"],
                part["wscales"],
                x_down=x_down,
                proj_up=part["proj_up"],
                bias=bias,
                act_unsigned=part.act_unsigned,
            )
        else:
            qx, ascales, x_down = reference.quantize_act_nvfp4(*act)
            codes = unpack_uint4(qx)
            out = reference.gemm_nvfp4(
                qx,
                ascales,
                part["qweight"],
                part["wscales"],
                x_down=x_down,
                proj_up=part["proj_up"],
                bias=bias,
                wtscale=part.get("wtscale"),
                wcscales=part.get("wcscales"),
            )
        assert_same(codes, expected[f"{name}.act_q"])
        found, wanted = ascales.T.contiguous(), expected[f"{name}.act_scale"].view(ascales.dtype)
        assert_same(found.view(torch.uint8), wanted.contiguous().view(torch.uint8))
        # the oracle keeps float32, the operation rounds to bfloat16: at most 2^-9 of each value
        assert_rounded_once(out, expected[f"{name}.y"])


def assert_rounded_once(out, exact):
    """`out` is `exact` rounded to bfloat16; float32 sums in another order may move a value to the next number."""
    assert out.dtype == torch.bfloat16
    # 2^-8: one bfloat16 step; the absolute term covers values near zero, where the order of the sums is all there is
    limit = exact.abs() * 2**-8 + 1e-5 * exact.abs().max()
    assert ((out.float() - exact).abs() <= limit).all()


@pytest.mark.parametrize("act_unsigned", [False, True])
def test_equals_comfy_kitchens_own_operation(act_unsigned):
    kitchen = pytest.importorskip("comfy_kitchen.backends.eager.svdquant", reason="comfy-kitchen is not installed")
    layer, x = draw_layer(dtype=torch.float32), draw_tokens(M=32, dtype=torch.float32)
    if act_unsigned:
        x = torch.nn.functional.gelu(x, approximate="tanh")
    act, weight = (layer["smooth_factor"], layer["proj_down"]), (layer["qweight"], layer["wscales"])
    qx, ascales, x_down = reference.quantize_act_int4(x, *act, act_unsigned=act_unsigned)
    out = reference.gemm_w4a4(
        qx, ascales, *weight, x_down=x_down, proj_up=layer["proj_up"], bias=layer["bias"], act_unsigned=act_unsigned
    )

    shifted = x + GELU_SHIFT if act_unsigned else x
    qx, ascales, x_down = kitchen.quantize_svdquant_w4a4(shifted, *act, act_unsigned=act_unsigned, lora_x=x)
    expected = kitchen.scaled_mm_svdquant_w4a4(
        qx, weight[0], ascales, weight[1], x_down, layer["proj_up"], layer["bias"], act_unsigned
    )
    # float32 throughout: only the order of the sums differs, and no code of these tokens sits on a rounding boundary
    assert relative_rms_error(out, expected[: x.shape[0]]) < 2e-6


# ------------------------------------------------------------------------------------------- the modes together


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_more_activation_bits_are_closer_to_the_dense_layer(dtype):
    layer, x = draw_layer(dtype=dtype), draw_tokens(M=64, dtype=dtype)
    bias = layer.pop("bias")
    weight = reference.dequantize_int4(layer["qweight"], layer["wscales"]) / layer["smooth_factor"].float()
    weight = weight + layer["proj_up"].float() @ layer["proj_down"].float().T
    dense = x.float() @ weight.T + bias.float()
    errors = [relative_rms_error(run_layer(x, layer, "int4", mode, bias), dense) for mode in MODES]
    assert errors[0] > 5 * errors[1] and errors[1] > 1.5 * errors[2]
    # what is left without activation codes is the rounding of x_hat, x_down and the output to `dtype`
    assert errors[2] < {torch.bfloat16: 6e-3, torch.float16: 8e-4, torch.float32: 2e-6}[dtype]


@pytest.mark.parametrize("compute", MODES)
def test_gelu_inside_equals_gelu_in_front(compute):
    layer, x = draw_layer(), draw_tokens()
    bias = layer.pop("bias")
    after = torch.nn.functional.gelu(x.float(), approximate="tanh").to(x.dtype)
    shared = {"scheme": "int4", "mode": compute, "bias": bias, "act_unsigned": True}
    assert_same(run_layer(x, layer, gelu=True, **shared), run_layer(after, layer, **shared))


@pytest.mark.parametrize("compute", MODES)
def test_lora_rides_in_the_low_rank_branch(compute):
    layer, x = draw_layer(dtype=torch.float32), draw_tokens(dtype=torch.float32)
    layer.pop("bias")
    g = torch.Generator().manual_seed(7)
    down, up = torch.randn(256, 16, generator=g) / 16, torch.randn(192, 16, generator=g)
    without = run_layer(x, layer, "int4", compute)
    with_lora = run_layer(x, layer, "int4", compute, lora=(down, up))
    assert relative_rms_error(with_lora - without, (x @ down) @ up.T) < 1e-5
