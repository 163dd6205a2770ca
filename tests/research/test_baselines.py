"""Baselines: each does what its name says, and the order of their errors is the literature's."""

from dataclasses import replace

import pytest
import torch
from planted_layers import draw_weight, nearest_tensors, output_error

from svdquant_pack.research.baselines import METHODS, held_out_error, with_bits
from svdquant_pack.svdq_core.quantize import InputStatistics
from svdquant_pack.svdq_core.quantize.grid import NF4, runtime_arithmetic
from svdquant_pack.svdq_core.quantize.problem import Problem

N, K = 128, 256


def _tokens(count, seed):
    g = torch.Generator().manual_seed(7)
    mixing, hot = torch.randn(48, K, generator=g) / 48**0.5, torch.randperm(K, generator=g)[:3]
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 48, generator=g) @ mixing + 0.5 * torch.randn(count, K, generator=g)
    x[:, hot] *= 10
    return x


def _problem(precision="int4", activations="w4a4", rank=16):
    statistics = InputStatistics.from_tokens(_tokens(2048, 2))
    arithmetic = runtime_arithmetic(precision, activations, False)
    return Problem(draw_weight(N, K).float(), statistics, arithmetic, rank=rank)


def test_the_order_of_methods():
    problem, unseen = _problem(), _tokens(512, 1)
    error = {method: held_out_error(method, problem, unseen) for method in METHODS}
    # what the papers report, each step a clear one
    assert error["smoothquant"] < 0.9 * error["nearest"]
    assert error["hadamard"] < 0.9 * error["nearest"]
    assert error["lorc"] < error["nearest"]
    assert error["svd"] < 0.9 * error["nearest"]
    assert error["paper"] < 0.9 * min(error["smoothquant"], error["svd"], error["lorc"])
    assert error["deepcompressor"] <= error["paper"]
    assert error["deepcompressor_gptq"] < error["deepcompressor"]
    # ours
    assert error["fast"] < 0.97 * error["paper"]
    assert error["best"] < 0.98 * error["deepcompressor_gptq"]  # measured: 0.96


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_nearest_is_the_plain_4_bit_layer(precision):
    problem, x = _problem(precision), _tokens(512, 1)
    tensors = nearest_tensors(problem.weight, precision)
    plain = output_error(x, (problem.weight, None), tensors, (precision, "w4a4"), None)
    assert held_out_error("nearest", problem, x) == pytest.approx(plain, rel=0.01)


def test_nf4_leaves_activations_alone():
    problem, x = _problem(), _tokens(512, 1)
    groups = problem.weight.unflatten(1, (-1, 64))
    scales = groups.abs().amax(dim=-1, keepdim=True).bfloat16().float()
    values = (NF4.snap(groups / scales) * scales).flatten(1)
    expected = ((x.bfloat16().float() @ values.T) - x @ problem.weight.T).norm() / (x @ problem.weight.T).norm()
    assert held_out_error("nf4", problem, x) == pytest.approx(float(expected), rel=0.01)


def test_rotation_changes_no_output():
    problem = _problem()
    rotated = METHODS["hadamard"].adapt(problem)
    torch.testing.assert_close(rotated.target, METHODS["paper"].adapt(problem).target, rtol=1e-3, atol=1e-3)
    assert rotated.tokens.abs().max() < 0.6 * problem.tokens.abs().max()  # the outlier channels are spread


def test_lorc_rounds_before_it_decomposes():
    problem = _problem()
    nearest, lorc = (METHODS[m].solve(METHODS[m].adapt(problem)) for m in ("nearest", "lorc"))
    assert torch.equal(lorc.values, nearest.values)
    assert lorc.proj_up.shape == (N, 16)


def test_more_bits_less_error():
    x = _tokens(512, 1)
    errors = [held_out_error("paper", with_bits(_problem(), bits, bits), x) for bits in (8, 6, 4, 3)]
    assert errors == sorted(errors)
    assert errors[0] < 0.25 * errors[1]
    shifted = with_bits(replace(_problem(), shift=0.171875), 4, 3)
    assert (shifted.arithmetic.activations.low, shifted.arithmetic.activations.high) == (0, 7)
    assert (shifted.arithmetic.weights.low, shifted.arithmetic.weights.high) == (-7, 7)
