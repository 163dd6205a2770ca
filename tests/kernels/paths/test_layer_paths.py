"""The paths of a layer: each against the reference, what it says when it cannot, the first that works."""

import pytest
import torch
from compare import assert_close, assert_same
from layer_calls import kernel_paths, layer_call, on_reference, run_layer
from problems import REAL, activations, awq_layer, int4_layer, int8_layer, nvfp4_layer

from svdquant_pack.kernels import gpus, ladder, reference
from svdquant_pack.kernels.epilogue import Epilogue
from svdquant_pack.kernels.layer_call import COMPUTE_MODES
from svdquant_pack.kernels.part_weights import dequantize
from svdquant_pack.kernels.paths import layer_paths, path
from svdquant_pack.kernels.paths.layer_paths import paths_for

LAYERS = {"int4": int4_layer, "nvfp4": nvfp4_layer, "int8": int8_layer}
# What a mode's fastest path may do to the reference: w4a8 only reorders sums, the others may round both sides to 16
# bits.
OP = {"w4a4": "16-bit product", "w4a8": "gemm_w4a8", "w4a16": "16-bit product"}
OPS = {**{(s, c): OP[c] for s in LAYERS for c in OP}, ("int8", "w4a4"): OP["w4a8"]}


@pytest.mark.gpu
@pytest.mark.parametrize(("M", "N", "K"), REAL)
@pytest.mark.parametrize("scheme", LAYERS)
@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("R", [0, 32])
def test_real_layers(M, N, K, scheme, compute, R, dtype, device):
    x, tensors = activations(M, K, dtype, device), LAYERS[scheme](N, K, R, dtype, device)
    bias = torch.randn(N, device=device).to(dtype)
    call = layer_call(x, tensors, scheme, compute, bias=bias)
    assert_close(layer_paths.run(call), on_reference(call), op=OPS[scheme, compute])


@pytest.mark.gpu
@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", LAYERS)
def test_no_step_was_left_behind(compute, scheme, dtype, device):
    """The tests above would also pass in plain torch."""
    layer = LAYERS[scheme](1152, 1152, 16, dtype, device)
    run_layer(activations(300, 1152, dtype, device), layer, scheme, compute)
    assert not ladder._broken


@pytest.mark.gpu
@pytest.mark.parametrize("compute", COMPUTE_MODES)
def test_gelu_and_shift(compute, dtype, device):
    x, tensors = activations(63, 1152, dtype, device).clamp(-30, 30), int4_layer(1152, 1152, 16, dtype, device)
    call = layer_call(x, tensors, "int4", compute, act_unsigned=True, gelu=True)
    assert_close(
        layer_paths.run(call), on_reference(call), op="codes behind GELU" if compute == "w4a8" else "16-bit product"
    )


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
    out = run_layer(x, tensors, scheme, compute, lora=(down, up))
    op = OPS[scheme, compute]
    assert_close(
        out, on_reference(layer_call(x, merged, scheme, compute)), op="gemm_w4a8 and LoRA" if op == "gemm_w4a8" else op
    )


def test_int8_weights_multiply_int8_activations(dtype, device):
    """By hand: codes and scales of both sides, whatever 4-bit mode is asked for."""
    x, tensors = activations(19, 192, dtype, device), int8_layer(72, 192, 16, dtype, device)
    qx, ascales, x_down = reference.quantize_act_int8(x, tensors["smooth_factor"], tensors["proj_down"])
    sums = (qx.double() @ tensors["qweight"].double().T) * ascales.double()[:, None] * tensors["wscales"].double()
    wanted = (sums + x_down.double() @ tensors["proj_up"].double().T).to(dtype)
    for compute in ("w4a4", "w4a8"):
        assert_close(run_layer(x, tensors, "int8", compute), wanted, op="gemm_w4a8")


def test_no_tokens_give_no_rows(dtype, device):
    out = run_layer(
        torch.empty(0, 192, dtype=dtype, device=device), int4_layer(72, 192, 16, dtype, device), "int4", "w4a8"
    )
    assert out.shape == (0, 72)


@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", LAYERS)
def test_the_result_goes_where_it_is_wanted(compute, scheme, dtype, device):
    x, tensors = activations(19, 192, dtype, device), LAYERS[scheme](72, 192, 16, dtype, device)
    wide = torch.full((19, 200), 7.0, dtype=dtype, device=device)
    out = run_layer(x, tensors, scheme, compute, epilogue=Epilogue(wide[:, 64:136]))
    assert_same(wide[:, 64:136].contiguous(), run_layer(x, tensors, scheme, compute))
    assert out.data_ptr() == wide[:, 64:].data_ptr()
    assert bool((wide[:, :64] == 7).all()) and bool((wide[:, 136:] == 7).all())


@pytest.mark.parametrize("compute", COMPUTE_MODES)
@pytest.mark.parametrize("scheme", LAYERS)
def test_a_sum_and_a_gelu_behind_the_layer(compute, scheme, dtype, device):
    """In the w4a8 kernels a part of the product, elsewhere after it, from a result already rounded."""
    x, tensors = activations(19, 192, dtype, device).clamp(-9, 9), LAYERS[scheme](72, 192, 16, dtype, device)
    before = torch.randn(19, 72, device=device).to(dtype)
    plain = run_layer(x, tensors, scheme, compute).float()
    wanted = torch.nn.functional.gelu(plain + before.float(), approximate="tanh")
    out = run_layer(x, tensors, scheme, compute, epilogue=Epilogue(before, accumulate=True, gelu_from=0))
    assert out.data_ptr() == before.data_ptr()
    assert_close(out, wanted, op="16-bit product")
    wanted = torch.nn.functional.gelu(plain, approximate="tanh")
    out = run_layer(x, tensors, scheme, compute, epilogue=Epilogue(gelu_from=0))
    assert_close(out, wanted, op="16-bit product")


def test_an_unknown_mode_is_refused(dtype, device):
    with pytest.raises(ValueError, match="expected one of w4a4, w4a8, w4a16"):
        run_layer(torch.zeros(1, 64), int4_layer(64, 64, 16, torch.float16, torch.device("cpu")), "int4", "w8a8")


GENERATION_OF_ITS_OWN = ("NativeInt4", "NativeFp4", "Hopper")


@pytest.mark.parametrize("M", [3, 19])
@pytest.mark.parametrize(("scheme", "mode"), sorted(layer_paths.ALL_CALLS))
def test_every_path_through_kernels(M, scheme, mode, dtype, device):
    """Also those below the first, which nothing else runs; with a bias, a branch and a sum behind it."""
    pytest.importorskip("triton")
    x, tensors = activations(M, 192, dtype, device), {**LAYERS, "awq": awq_layer}[scheme](72, 192, 16, dtype, device)
    bias, before = torch.randn(72, device=device).to(dtype), torch.randn(M, 72, device=device).to(dtype)
    drawn = torch.randn(192, 16, device=device) / 192**0.5, torch.randn(72, 16, device=device)
    lora = tuple(t.to(dtype) for t in drawn) if scheme == "awq" else None
    plain = on_reference(layer_call(x, tensors, scheme, mode, bias=bias, lora=lora))
    calls = [layer_call(x, tensors, scheme, mode, bias=bias, lora=lora)]
    calls.append(
        layer_call(x, tensors, scheme, mode, bias=bias, lora=lora, epilogue=Epilogue(before.clone(), accumulate=True))
    )
    for one in kernel_paths(calls[0]):
        if type(one).__name__ not in GENERATION_OF_ITS_OWN:
            assert_close(one.run(calls[0]), plain, op="16-bit product")
            if one.makes(calls[0]) is not None:  # as layers do that read one tensor
                assert_same(one.multiply(calls[0], one.quantize(calls[0])), one.run(calls[0]))
            calls[1].epilogue.out.copy_(before)
            assert_close(one.run(calls[1]), plain.float() + before.float(), op="16-bit product")


@pytest.mark.parametrize("M", [1, 19])
def test_activations_that_want_gradients_are_taken(M, dtype, device):
    pytest.importorskip("triton")
    tensors, bias = awq_layer(72, 192, 0, dtype, device), torch.randn(72, device=device).to(dtype)
    lora = torch.randn(192, 16, device=device).to(dtype) / 14, torch.randn(72, 16, device=device).to(dtype)
    x = torch.randn(M, 192, device=device).to(dtype)
    wanted = on_reference(layer_call(x, tensors, "awq", "w4a16", bias=bias, lora=lora))
    wanting = [t.requires_grad_() for t in (x, bias, *lora)]
    call = layer_call(wanting[0], tensors, "awq", "w4a16", bias=wanting[1], lora=(wanting[2], wanting[3]))
    for one in kernel_paths(call):
        assert_close(one.run(call), wanted, op="16-bit product")


@pytest.mark.gpu
@pytest.mark.parametrize("M", [1, 4, 300])
@pytest.mark.parametrize("has_lora", [False, True])
def test_real_modulation_layers(M, has_lora, dtype, device):
    N, K = 18432, 3072
    x, tensors = torch.randn(M, K, device=device).to(dtype), awq_layer(N, K, 0, dtype, device)
    drawn = torch.randn(K, 8, device=device) / K**0.5, torch.randn(N, 8, device=device)
    lora = tuple(t.to(dtype) for t in drawn) if has_lora else None
    call = layer_call(x, tensors, "awq", "w4a16", bias=torch.randn(N, device=device).to(dtype), lora=lora)
    assert_close(layer_paths.run(call), on_reference(call), op="16-bit product")
    assert not ladder._broken, "a path was left behind, so plain torch was compared with itself"


def test_the_cpu_takes_the_reference_bit_for_bit():
    half = torch.float16, torch.device("cpu")
    call = layer_call(activations(19, 192, *half), int4_layer(72, 192, 16, *half), "int4", "w4a8")
    assert_same(layer_paths.run(call), on_reference(call))


INT8 = ["int8 tensor cores", "torch's int8 product"]


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Lets tensors of the CPU count as those of a GPU of a generation, by name."""

    def pretend(name):
        row = next(row for row in gpus.GENERATIONS if row.name == name)
        monkeypatch.setattr(path, "generation", lambda _device: row)
        for module in (path, layer_paths):
            monkeypatch.setattr(module, "why_no_triton", lambda _device: None)
        layer_paths._steps_here.cache_clear()

    yield pretend
    monkeypatch.undo()
    layer_paths._steps_here.cache_clear()


@pytest.mark.parametrize(
    ("gpu", "scheme", "mode", "names"),
    [
        ("sm_89", "int4", "w4a4", ["INT4 tensor cores", "int8 tensor cores", "16-bit tensor cores"]),
        ("sm_90", "int4", "w4a4", ["16-bit tensor cores"]),
        ("sm_90", "nvfp4", "w4a8", ["Hopper's asynchronous tensor cores", *INT8]),
        ("sm_120", "nvfp4", "w4a4", ["FP4 tensor cores", "16-bit tensor cores"]),
        ("sm_120", "int8", "w4a8", INT8),
        ("gfx1030", "int4", "w4a8", []),
        ("gfx1030", "int4", "w4a16", ["16-bit tensor cores"]),
        ("gfx942", "int4", "w4a8", INT8),
    ],
)
def test_each_generation_has_its_paths(gpu, scheme, mode, names, on_a_gpu):
    pytest.importorskip("triton.experimental.gluon")
    on_a_gpu(gpu)
    cpu = torch.device("cpu")
    call = layer_call(torch.empty(4608, 192).half(), LAYERS[scheme](3072, 192, 16, torch.float16, cpu), scheme, mode)
    found = {one.name: one.can_run(call) for one in paths_for(scheme, mode)}
    assert [name for name, reason in found.items() if reason is None] == [*names, "the reference"]
    for name, reason in found.items():
        assert reason is None or len(reason) > 8, f"no reason in words for {name}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.empty(4, 192)}, "float32"),
        ({"x": torch.empty(16, 192).half()}, "too few tiles"),
        ({"epilogue": Epilogue(gelu_from=64)}, "inside a tile"),
        ({"epilogue": Epilogue(torch.empty(4608, 3073).half()[:, 1:])}, "16 bytes"),
    ],
)
def test_what_a_call_itself_forbids_is_said(change, words, on_a_gpu):
    pytest.importorskip("triton.experimental.gluon")
    on_a_gpu("sm_90")
    tensors = int4_layer(3072, 192, 16, torch.float16, torch.device("cpu"))
    settings = {"x": torch.empty(4608, 192).half(), **change}
    reason = paths_for("int4", "w4a8")[0].can_run(layer_call(settings.pop("x"), tensors, "int4", "w4a8", **settings))
    assert reason is not None and words in reason


def test_what_fails_is_left_behind_and_the_next_path_runs(on_a_gpu, monkeypatch, caplog):
    on_a_gpu("sm_89")
    monkeypatch.setattr(ladder, "_broken", set())
    monkeypatch.setattr(ladder, "_said", set())
    _, first, second, *_ = paths_for("int4", "w4a8")
    assert [first.name, second.name] == INT8
    calls = []

    def fail(_call):
        calls.append(1)
        raise RuntimeError("no compiler")

    for int8 in (first, second):
        monkeypatch.setattr(int8, "run", fail)
    monkeypatch.setattr(layer_paths.PlainTorch, "why_not_here", lambda _self, _device, _dtype: None)
    half = torch.float16, torch.device("cpu")
    tensors, x = int4_layer(72, 192, 16, *half), activations(19, 192, *half)
    for _ in range(2):
        out = layer_paths.run(layer_call(x, tensors, "int4", "w4a8"))
    assert calls == [1, 1], "each once"
    assert "w4a8 with int8 tensor cores does not work on cpu" in caplog.text
    assert "using w4a16 with plain torch instead" in caplog.text
    assert_same(out, layer_paths.PLAIN_TORCH.run(layer_call(x, tensors, "int4", "w4a16")))


@pytest.mark.parametrize(("scheme", "mode"), sorted(layer_paths.ALL_CALLS))
@pytest.mark.parametrize("path_name", ["REFERENCE", "PLAIN_TORCH"])
def test_a_gradient_that_is_asked_for_is_right(scheme, mode, path_name, monkeypatch):
    """As if activations were left alone; through GELUs on both sides, a sum, and to the factors of a LoRA."""
    cpu = torch.device("cpu")
    tensors = {**LAYERS, "awq": awq_layer}[scheme](72, 192, 16, torch.float32, cpu)
    weight = dequantize(tensors, scheme)
    monkeypatch.setattr(layer_paths, "REFERENCE", getattr(layer_paths, path_name))
    x, held, bias = torch.randn(19, 192), torch.randn(19, 72), torch.randn(72)
    lora = torch.randn(192, 16) / 14, torch.randn(72, 16) / 4
    leaves = [t.clone().requires_grad_() for t in (x, bias, *lora)]
    expected = [t.clone().requires_grad_() for t in (x, bias, *lora)]
    gelu = torch.nn.functional.gelu if scheme != "awq" else lambda t, approximate: t
    out = held.clone()
    call = layer_call(
        leaves[0], tensors, scheme, mode, bias=leaves[1], lora=(leaves[2], leaves[3]), gelu=scheme != "awq",
        epilogue=Epilogue(out, accumulate=True, gelu_from=8),
    )  # fmt: skip
    layer_paths.run(call).square().sum().backward()
    inner = gelu(expected[0], approximate="tanh")
    smoothed = inner / tensors["smooth_factor"] if scheme != "awq" else inner
    total = smoothed @ weight.T + (inner @ expected[2]) @ expected[3].T + expected[1] + held
    if scheme != "awq":
        total = total + (inner @ tensors["proj_down"]) @ tensors["proj_up"].T
    after = torch.cat((total[:, :8], torch.nn.functional.gelu(total[:, 8:], approximate="tanh")), dim=1)
    after.square().sum().backward()
    for found, wanted in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-3 * float(wanted.grad.abs().max()))
