"""W4A16 with a scale for each group: by the weight alone, and by what the inputs make of the error."""

import pytest
import torch

from svdquant_pack.kernels.reference import dequantize_awq
from svdquant_pack.svdq_core.quantize.part_plan import LayerPlan
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics
from svdquant_pack.svdq_core.quantize.w4a16 import fit_w4a16, output_error, weight_error

N, K = 64, 256


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(K, K, generator=generator) * torch.logspace(0, -2, K)[:, None]  # correlated inputs
    rows = torch.randn(4096, K, generator=generator) @ mixing
    weight = torch.randn(N, K, generator=generator) * K**-0.5
    return weight, rows[:3072], rows[3072:]


def statistics_of(rows, held_out):
    hessian = rows.T @ rows / len(rows)
    square = rows.square().mean(dim=0)
    return InputStatistics(held_out, square, rows.abs().amax(dim=0), len(rows), {(0, K): hessian}, len(rows))


@pytest.mark.parametrize("group", [64, 128])
def test_inputs_that_correlate(group):
    weight, rows, held_out = draw()
    statistics = statistics_of(rows, held_out)
    plain = fit_w4a16(weight, group, torch.bfloat16)
    fitted = fit_w4a16(weight, group, torch.bfloat16, statistics)
    assert plain.rounding == "nearest" and fitted.rounding == "gptq"
    assert output_error(fitted, weight, statistics) < 0.5 * output_error(plain, weight, statistics)
    assert weight_error(plain, weight) < weight_error(fitted, weight)


def test_moments_that_say_nothing_about_the_rows_are_not_followed():
    weight, rows, _ = draw()
    others = torch.randn(512, K, generator=torch.Generator().manual_seed(9))
    misled = statistics_of(rows * torch.linspace(0, 10, K), others)
    fitted, plain = fit_w4a16(weight, 64, torch.bfloat16, misled), fit_w4a16(weight, 64, torch.bfloat16)
    assert fitted.rounding == "nearest" and torch.equal(fitted.codes, plain.codes)


def test_inputs_that_never_occur():
    weight, rows, held_out = draw()
    rows[:, 100:], held_out[:, 100:] = 0.0, 0.0
    statistics = statistics_of(rows, held_out)
    fitted = fit_w4a16(weight, 64, torch.bfloat16, statistics)
    assert torch.isfinite(fitted.values).all() and output_error(fitted, weight, statistics) < 0.1


@pytest.mark.parametrize("group", [64, 128])
def test_what_the_runtime_gets(group):
    weight, *_ = draw()
    fitted = fit_w4a16(weight, group, torch.bfloat16)
    part = fitted.part(LayerPlan.text_encoder(N, K, group).parts[0])
    part.check("layer")
    assert torch.equal(dequantize_awq(*(part[n] for n in ("qweight", "wscales", "wzeros"))), fitted.values)


def test_a_smaller_group_loses_less():
    weight, *_ = draw()
    errors = [weight_error(fit_w4a16(weight, group, torch.bfloat16), weight) for group in (64, 128)]
    assert 0.05 < errors[0] < 0.95 * errors[1] < 0.11
