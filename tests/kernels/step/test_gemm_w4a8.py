"""gemm_w4a8 and its Hopper form: exact integer sums, the reference within the order of float32 sums."""

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close, assert_same
from problems import REAL, SMALL, activations, branch, packed_codes, scales

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.epilogue import Epilogue
from svdquant_pack.kernels.gpus import generation, takes_ptx
from svdquant_pack.kernels.layer_call import Int8Weight, QuantizedAct
from svdquant_pack.kernels.step.gemm_w4a8 import gemm_w4a8

SHAPES = [*SMALL, *(pytest.param(*shape, marks=pytest.mark.gpu) for shape in REAL)]


def portable():
    return gemm_w4a8


def by_torch():
    from svdquant_pack.kernels.step.gemm_w4a8_by_torch import gemm_w4a8_by_torch

    if torch.cuda.is_available():  # it refuses few tokens there, which the path knows
        pytest.skip("test_layer_paths.py holds it to what it takes on a GPU")
    return gemm_w4a8_by_torch


def hopper():
    if not torch.cuda.is_available() or not generation(torch.device("cuda", 0)).wgmma:
        pytest.skip("needs a Hopper GPU")
    from svdquant_pack.kernels.step.gemm_w4a8_hopper import gemm_w4a8_hopper

    return gemm_w4a8_hopper


@pytest.fixture(params=[portable, by_torch, hopper], ids=["portable", "by torch", "hopper"])
def gemm(request):
    return request.param()


def problem(M, N, K, R, *, dtype, device):
    smooth_factor, proj_down, proj_up = branch(N, K, R, dtype, device)
    quantized = reference.quantize_act_int8(activations(M, K, dtype, device), smooth_factor, proj_down)
    weight = reference.dequantize_int4(packed_codes(N, K, device), scales(N, K, dtype, device))
    return quantized, reference.requantize_int8(weight), proj_up


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
@pytest.mark.parametrize("R", [0, 16, 48, 128])
@pytest.mark.parametrize("has_bias", [False, True])
def test_matches_reference(gemm, M, N, K, R, has_bias, dtype, device):
    arguments = problem(M, N, K, R, dtype=dtype, device=device)
    bias = torch.randn(N, device=device).to(dtype) if has_bias else None
    assert_close(gemm(*arguments, bias), reference.gemm_w4a8(*arguments, bias), op="gemm_w4a8")


def test_integer_sums_are_exact(gemm, device):
    """With unit scales and sums below 2^11 the float16 output is the integer sum itself, at any position."""
    M, N, K = 70, 136, 128
    qx = torch.randint(-3, 4, (M, K), device=device, dtype=torch.int8)
    qweight = torch.randint(-3, 4, (N, K), device=device, dtype=torch.int8)
    none = torch.empty(0, device=device, dtype=torch.float16)
    quantized = QuantizedAct(qx, torch.ones(M, device=device), none.view(M, 0))
    out = gemm(quantized, Int8Weight(qweight, torch.ones(N, device=device)), none.view(N, 0))
    assert_same(out, (qx.float() @ qweight.float().T).half())


def test_low_rank_branch_is_live(gemm, dtype, device):
    *arguments, proj_up = problem(33, 72, 192, 16, dtype=dtype, device=device)
    assert not torch.equal(gemm(*arguments, proj_up), gemm(*arguments, torch.zeros_like(proj_up)))


def test_rows_of_the_result_may_be_apart(gemm, dtype, device):
    arguments = problem(33, 72, 192, 16, dtype=dtype, device=device)
    wide = torch.full((33, 200), 7.0, dtype=dtype, device=device)
    out = gemm(*arguments, None, Epilogue(wide[:, 64:136]))
    assert out.data_ptr() == wide[:, 64:].data_ptr()
    assert_same(out.contiguous(), gemm(*arguments))
    assert bool((wide[:, :64] == 7).all()) and bool((wide[:, 136:] == 7).all())


# In the Hopper kernel 150 rows are a whole tile, a half and a half of nothing; 392 columns are three parts and 8 more.
M, N, K = 150, 392, 192
# What 132 processors make of the Hopper kernel's tiles, of which N = 3080, 4616 and 4360 fill 8 columns of the last.
ROUNDS = {
    "two whole rounds and 84 parts": (2100, 4360),
    "a whole round and 40 parts": (1000, 4616),
    "only parts": (300, 3080),
    "96 whole tiles": (1000, 3072),
    "a whole round and 84 whole tiles": (1500, 4608),
}


def results_around_one(R, dtype, device, M=M, N=N):
    """Arguments whose result has values where a GELU bends, and a bias."""
    qx = torch.randint(-127, 128, (M, K), device=device, dtype=torch.int16).to(torch.int8)
    qweight = torch.randint(-127, 128, (N, K), device=device, dtype=torch.int16).to(torch.int8)
    ascales = torch.rand(M, device=device) + 0.5
    channel_scales = (torch.rand(N, device=device) + 0.5) / (73**2 * K**0.5)
    x_down, proj_up = torch.randn(M, R, device=device), torch.randn(N, R, device=device) / max(R, 1) ** 0.5
    bias = torch.randn(N, device=device)
    quantized = QuantizedAct(qx, ascales, x_down.to(dtype))
    return quantized, Int8Weight(qweight, channel_scales), proj_up.to(dtype), bias.to(dtype)


def held_and_out(apart, dtype, device, M=M, N=N):
    """What a result holds beforehand, and that in memory whose rows are apart or not, with what lies around it."""
    held = (2 * torch.randn(M, N, device=device)).to(dtype)
    around = torch.full((M, N + 128 * apart), 7.0, dtype=dtype, device=device)
    out = around[:, 64 * apart : 64 * apart + N]
    out.copy_(held)
    return held, out, around


def gelu_op(device):
    """The row of the table of tolerances: only the hardware's tanh needs one of its own."""
    return "gemm_w4a8 behind GELU" if takes_ptx(device) else "gemm_w4a8"


@pytest.mark.parametrize("apart", [False, True], ids=["dense", "rows apart"])
@pytest.mark.parametrize("R", [0, 48])
def test_adds_to_what_the_result_holds(gemm, R, apart, dtype, device):
    arguments = results_around_one(R, dtype, device)
    held, out, around = held_and_out(apart, dtype, device)
    result = gemm(*arguments, Epilogue(out, True))
    assert result.data_ptr() == out.data_ptr() and result.stride() == out.stride()
    assert_close(out, reference.gemm_w4a8(*arguments, Epilogue(held.clone(), True)), op="gemm_w4a8")
    assert around.double().sum() == out.double().sum() + 7 * (around.numel() - out.numel())


def test_adds_in_every_run(gemm, dtype, device):
    """Several tiles of one block and several runs: what is read is what the run before wrote."""
    arguments = results_around_one(16, dtype, device)
    held, out, _ = held_and_out(False, dtype, device)
    for _ in range(3):
        gemm(*arguments, Epilogue(out, True))
        held = reference.gemm_w4a8(*arguments, Epilogue(held, True))
    assert_close(out, held, op="gemm_w4a8 in three sums")


@pytest.mark.parametrize("R", [0, 48])
def test_gelu_of_the_whole_result(gemm, R, dtype, device):
    arguments = results_around_one(R, dtype, device)
    without, result = gemm(*arguments), gemm(*arguments, Epilogue(gelu_from=0))
    assert_close(result, F.gelu(without.float(), approximate="tanh").to(dtype), op=gelu_op(device))
    assert_close(result, reference.gemm_w4a8(*arguments, Epilogue(gelu_from=0)), op=gelu_op(device))


def test_gelu_begins_at_a_column(gemm, dtype, device):
    """At columns where parts of a tile begin, and in the last part of a row of tiles."""
    arguments = results_around_one(16, dtype, device)
    without = gemm(*arguments)
    for first in (128, N // 128 * 128):
        result = gemm(*arguments, Epilogue(gelu_from=first))
        assert torch.equal(result[:, :first], without[:, :first])
        assert_close(result, reference.gemm_w4a8(*arguments, Epilogue(gelu_from=first)), op=gelu_op(device))
        assert not torch.equal(result[:, first:], without[:, first:])


def test_sum_then_gelu(gemm, dtype, device):
    arguments = results_around_one(48, dtype, device)
    held, out, around = held_and_out(True, dtype, device)
    gemm(*arguments, Epilogue(out, True, 0))
    summed = gemm(*arguments, Epilogue(held.clone(), True))
    assert_close(out, F.gelu(summed.float(), approximate="tanh").to(dtype), op=gelu_op(device))
    assert_close(out, reference.gemm_w4a8(*arguments, Epilogue(held, True, 0)), op=gelu_op(device))
    assert bool((around[:, :64] == 7).all()) and bool((around[:, 64 + N :] == 7).all())


@pytest.mark.gpu
@pytest.mark.parametrize(("M", "N"), ROUNDS.values(), ids=ROUNDS)
@pytest.mark.parametrize("accumulate", [False, True], ids=["", "sum"])
@pytest.mark.parametrize("gelu_from", [None, 0, 256], ids=["", "gelu", "gelu behind 256"])
def test_every_kind_of_round(gemm, M, N, accumulate, gelu_from, dtype, device):
    """Right, the same bits in every run, and nothing written beside the result."""
    arguments = results_around_one(48, dtype, device, M, N)
    held, out, around = held_and_out(True, dtype, device, M, N)
    expected = reference.gemm_w4a8(*arguments, Epilogue(held.clone(), accumulate, gelu_from))
    gemm(*arguments, Epilogue(out, accumulate, gelu_from))
    assert_close(out, expected, op="gemm_w4a8" if gelu_from is None else gelu_op(device))
    assert bool((around[:, :64] == 7).all()) and bool((around[:, 64 + N :] == 7).all())
    for _ in range(3):
        assert_same(gemm(*arguments, Epilogue(held.clone(), accumulate, gelu_from)), out.contiguous())


@pytest.mark.gpu
@pytest.mark.parametrize("accumulate", [False, True], ids=["", "sum"])
@pytest.mark.parametrize("R", [0, 32, 64, 80, 144])
def test_ranks_of_one_step_and_of_several(gemm, R, accumulate, dtype, device):
    """In whole tiles and in single parts."""
    M, N = ROUNDS["a whole round and 40 parts"]
    arguments = results_around_one(R, dtype, device, M, N)
    held, out, around = held_and_out(True, dtype, device, M, N)
    gemm(*arguments, Epilogue(out, accumulate))
    assert_close(out, reference.gemm_w4a8(*arguments, Epilogue(held.clone(), accumulate)), op="gemm_w4a8")
    assert bool((around[:, :64] == 7).all()) and bool((around[:, 64 + N :] == 7).all())
    for _ in range(3):
        assert_same(gemm(*arguments, Epilogue(held.clone(), accumulate)), out.contiguous())


def test_a_sum_needs_what_it_adds_to(gemm, dtype, device):
    with pytest.raises(ValueError, match="out is None"):
        gemm(*results_around_one(0, dtype, device), Epilogue(accumulate=True))
