"""svdquant_linear: every mode on every step of the ladder against the reference, alone and compiled."""

import pytest
import torch
from compare import assert_close, assert_same
from problems import REAL, activations, int4_layer, int8_layer, nvfp4_layer

from svdquant_pack.kernels import reference, torch_path
from svdquant_pack.kernels import svdquant_linear as linear
from svdquant_pack.kernels.epilogue import Epilogue
from svdquant_pack.kernels.svdquant_linear import COMPUTE_MODES, choose_compute, svdquant_linear

LAYERS = {"int4": int4_layer, "nvfp4": nvfp4_layer, "int8": int8_layer}
# What a mode's fastest step may do to the reference: w4a8 only reorders sums, the others may round both sides to 16
# bits.
OP = {"w4a4": "16-bit product", "w4a8": "gemm_w4a8", "w4a16": "16-bit product"}
OPS = {**{(s, c): OP[c] for s in LAYERS for c in OP}, ("int8", "w4a4"): OP["w4a8"]}


def on_reference(x, tensors, scheme, compute, bias=None, act_unsigned=False, gelu=False):
    return linear._reference_linear(x, tensors, scheme, compute, bias, act_unsigned, gelu)


@pytest.mark.gpu
@pytest.mark.parametrize(("M", "N", "K"), REAL)
@pytest.mark.parametrize("scheme", LAYERS)
@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("R", [0, 32])
def test_real_layers(M, N, K, scheme, compute, R, dtype, device):
    x, tensors = activations(M, K, dtype, device), LAYERS[scheme](N, K, R, dtype, device)
    bias = torch.randn(N, device=device).to(dtype)
    out = svdquant_linear(x, tensors, scheme, compute, bias)
    assert_close(out, on_reference(x, tensors, scheme, compute, bias), op=OPS[scheme, compute])


@pytest.mark.gpu
@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", LAYERS)
def test_no_step_was_left_behind(compute, scheme, dtype, device):
    """The tests above would also pass in plain torch."""
    from svdquant_pack.kernels import ladder

    layer = LAYERS[scheme](1152, 1152, 16, dtype, device)
    svdquant_linear(activations(300, 1152, dtype, device), layer, scheme, compute)
    assert not ladder._broken


@pytest.mark.gpu
@pytest.mark.parametrize("compute", COMPUTE_MODES)
def test_gelu_and_shift(compute, dtype, device):
    x, tensors = activations(63, 1152, dtype, device).clamp(-30, 30), int4_layer(1152, 1152, 16, dtype, device)
    out = svdquant_linear(x, tensors, "int4", compute, act_unsigned=True, gelu=True)
    wanted = on_reference(x, tensors, "int4", compute, act_unsigned=True, gelu=True)
    assert_close(out, wanted, op="codes behind GELU" if compute == "w4a8" else "16-bit product")


@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", LAYERS)
@pytest.mark.parametrize("r", [4, 16, 160])
def test_a_lora_adds_its_product(compute, scheme, r, dtype, device):
    M, N, K = 19, 72, 192
    x, tensors = activations(M, K, dtype, device), LAYERS[scheme](N, K, 16, dtype, device)
    down, up = (torch.randn(K, r, device=device) / K**0.5).to(dtype), torch.randn(N, r, device=device).to(dtype)
    merged = {
        **tensors,
        "proj_down": torch.cat((tensors["proj_down"], down), dim=1),
        "proj_up": torch.cat((tensors["proj_up"], up), dim=1),
    }
    out = svdquant_linear(x, tensors, scheme, compute, None, down, up)
    op = OPS[scheme, compute]
    assert_close(out, on_reference(x, merged, scheme, compute), op="gemm_w4a8 and LoRA" if op == "gemm_w4a8" else op)


@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", LAYERS)
@pytest.mark.parametrize(("act_unsigned", "gelu"), [(False, False), (True, True)])
def test_plain_torch_matches_reference(compute, scheme, act_unsigned, gelu, device):
    x, tensors = activations(19, 192, torch.float16, device), LAYERS[scheme](72, 192, 16, torch.float16, device)
    bias = torch.randn(72, device=device).half()
    out = linear._torch_linear(x, tensors, scheme, compute, bias, act_unsigned, gelu)
    wanted = on_reference(x, tensors, scheme, compute, bias, act_unsigned, gelu)
    assert_close(out, wanted, op=OP[compute])


@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", ["int4", "nvfp4"])
def test_channel_scales_change_nothing(compute, scheme, dtype, device):
    x, tensors = activations(19, 192, dtype, device), LAYERS[scheme](72, 192, 16, dtype, device)
    with_scales = {**tensors, "channel_scales": linear.find_channel_scales(tensors, scheme)}
    assert_same(with_scales["channel_scales"], reference.requantize_int8(linear.dequantize(tensors, scheme))[1])
    assert_same(svdquant_linear(x, with_scales, scheme, compute), svdquant_linear(x, tensors, scheme, compute))


def test_int8_weights_multiply_int8_activations(dtype, device):
    """By hand: codes and scales of both sides, whatever 4-bit mode is asked for."""
    x, tensors = activations(19, 192, dtype, device), int8_layer(72, 192, 16, dtype, device)
    qx, ascales, x_down = reference.quantize_act_int8(x, tensors["smooth_factor"], tensors["proj_down"])
    sums = (qx.double() @ tensors["qweight"].double().T) * ascales.double()[:, None] * tensors["wscales"].double()
    wanted = (sums + x_down.double() @ tensors["proj_up"].double().T).to(dtype)
    for compute in ("w4a4", "w4a8"):
        assert_close(svdquant_linear(x, tensors, "int8", compute), wanted, op="gemm_w4a8")
    assert choose_compute("int8", device)[0] == "w4a8"


@pytest.mark.parametrize("compute", COMPUTE_MODES)
def test_one_opaque_call_under_compile(compute, dtype, device):
    tensors = int4_layer(72, 192, 16, dtype, device)
    x = activations(19, 192, dtype, device)
    graphs = []

    def backend(graph, _inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(lambda x: svdquant_linear(x, tensors, "int4", compute), fullgraph=True, backend=backend)
    assert_same(compiled(x), svdquant_linear(x, tensors, "int4", compute))
    assert [name for name in graphs[0] if "svdquant" in name] == ["svdquant.linear.default"]


def test_the_fake_has_the_shape_of_the_result(dtype, device):
    tensors = int4_layer(72, 192, 16, dtype, device)
    names = ("qweight", "wscales", "smooth_factor", "proj_down", "proj_up")
    arguments = (activations(19, 192, dtype, device), *(tensors[name] for name in names), None, None, None, None)
    torch.library.opcheck(linear._linear_op, (*arguments, "int4", "w4a8", False, False), test_utils="test_faketensor")


def test_no_tokens_give_no_rows(dtype, device):
    out = svdquant_linear(
        torch.empty(0, 192, dtype=dtype, device=device), int4_layer(72, 192, 16, dtype, device), "int4", "w4a8"
    )
    assert out.shape == (0, 72)


@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", LAYERS)
def test_the_result_goes_where_it_is_wanted(compute, scheme, dtype, device):
    x, tensors = activations(19, 192, dtype, device), LAYERS[scheme](72, 192, 16, dtype, device)
    wide = torch.full((19, 200), 7.0, dtype=dtype, device=device)
    out = svdquant_linear(x, tensors, scheme, compute, epilogue=Epilogue(wide[:, 64:136]))
    assert_same(wide[:, 64:136].contiguous(), svdquant_linear(x, tensors, scheme, compute))
    assert out.data_ptr() == wide[:, 64:].data_ptr()
    assert bool((wide[:, :64] == 7).all()) and bool((wide[:, 136:] == 7).all())


@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", LAYERS)
def test_a_sum_and_a_gelu_behind_the_layer(compute, scheme, dtype, device):
    """In the w4a8 kernels a part of the product, elsewhere after it, from a result already rounded."""
    x, tensors = activations(19, 192, dtype, device).clamp(-9, 9), LAYERS[scheme](72, 192, 16, dtype, device)
    before = torch.randn(19, 72, device=device).to(dtype)
    plain = svdquant_linear(x, tensors, scheme, compute).float()
    wanted = torch.nn.functional.gelu(plain + before.float(), approximate="tanh")
    out = svdquant_linear(x, tensors, scheme, compute, epilogue=Epilogue(before, accumulate=True, gelu_from=0))
    assert out.data_ptr() == before.data_ptr()
    assert_close(out, wanted, op="16-bit product")
    wanted = torch.nn.functional.gelu(plain, approximate="tanh")
    out = svdquant_linear(x, tensors, scheme, compute, epilogue=Epilogue(gelu_from=0))
    assert_close(out, wanted, op="16-bit product")


def test_a_transposed_input_is_as_good(dtype, device):
    x, tensors = activations(19, 192, dtype, device), int4_layer(72, 192, 16, dtype, device)
    assert_same(
        svdquant_linear(x.T.contiguous().T, tensors, "int4", "w4a8"), svdquant_linear(x, tensors, "int4", "w4a8")
    )


def test_an_unknown_mode_is_refused(dtype, device):
    with pytest.raises(ValueError, match="expected one of w4a4, w4a8, w4a16"):
        svdquant_linear(torch.zeros(1, 64), int4_layer(64, 64, 16, torch.float16, torch.device("cpu")), "int4", "w8a8")


@pytest.mark.parametrize(
    ("gpu", "scheme", "mode"),
    [
        ("sm_89", "int4", "w4a4"),
        ("sm_89", "nvfp4", "w4a8"),
        ("sm_90", "int4", "w4a8"),
        ("sm_90", "nvfp4", "w4a8"),
        ("sm_120", "int4", "w4a8"),
        ("sm_120", "nvfp4", "w4a4"),
        ("gfx1100", "int4", "w4a8"),
        ("other", "int4", "w4a16"),
    ],
)
def test_auto_takes_the_fastest_mode(gpu, scheme, mode, monkeypatch):
    for module in (linear, linear.why_no_triton.__globals__):
        setter = monkeypatch.setitem if isinstance(module, dict) else monkeypatch.setattr
        setter(module, "generation", lambda _device: gpu)
    monkeypatch.setitem(linear.why_no_triton.__globals__, "has_triton", lambda: True)
    chosen, reason = choose_compute(scheme, torch.device("cuda", 0))
    assert chosen == mode
    assert reason


def test_torch_int_mm_is_used_where_it_can_be(monkeypatch, device):
    """17 rows and more go through torch._int_mm, fewer through the reference; both give the same rows."""
    tensors = int4_layer(72, 192, 16, torch.float16, device)
    x, calls = activations(20, 192, torch.float16, device), []
    int_mm = torch._int_mm
    monkeypatch.setattr(torch_path.torch, "_int_mm", lambda a, b: calls.append(1) or int_mm(a, b))
    many = linear._torch_linear(x, tensors, "int4", "w4a8", None, False, False)
    few = linear._torch_linear(x[:5], tensors, "int4", "w4a8", None, False, False)
    assert len(calls) == 1
    assert_close(many[:5], few, op="gemm_w4a8")
