"""Simulated layers compute what the pack's kernels compute, and what the baselines' own error formula says."""

from dataclasses import replace

import pytest
import torch

from svdquant_pack.kernels.format import GELU_SHIFT
from svdquant_pack.research.baselines import METHODS, held_out_error, with_bits
from svdquant_pack.research.evaluate.linears import (
    DenseLinear,
    RealLinear,
    SimulatedLinear,
    SimulatedPart,
    WithLora,
    add_lora,
)
from svdquant_pack.svdq_core.quantize import LayerPlan, QuantSpec, quantize_layer
from svdquant_pack.svdq_core.quantize.grid import runtime_arithmetic
from svdquant_pack.svdq_core.quantize.problem import Problem
from svdquant_pack.svdq_core.quantize.statistics import InputStatistics

FORMATS = [("int4", "w4a4"), ("int4", "w4a8"), ("nvfp4", "w4a4"), ("int8", "w4a8")]
PLANS = {
    "whole": LayerPlan.whole(256, 384),
    "behind a GELU": LayerPlan.whole(256, 384, after_gelu=True),
    "rows": LayerPlan.stack_rows((128, 128), 384),
    "columns": LayerPlan.stack_columns(256, (128, 256), (False, True)),
}


def make_layer(plan, precision, activations):
    spec = QuantSpec(precision, activations, rank=16)
    return quantize_layer(torch.randn(256, 384) / 20, torch.randn(256), plan, spec, "layer")[0]


def relative(value, reference):
    return float((value - reference).norm() / reference.norm())


def tokens(plan):
    x = torch.randn(2, 40, 384)
    for part in plan.parts:
        if part.after_gelu:
            columns = slice(*part.columns)
            x[..., columns] = torch.nn.functional.gelu(x[..., columns])
    return x.bfloat16().float()  # what the kernels get


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("precision", "activations"), FORMATS)
def test_a_simulated_layer_is_the_pack_s_layer(plan, precision, activations):
    layer = make_layer(PLANS[plan], precision, activations)
    x = tokens(PLANS[plan])
    simulated = SimulatedLinear.of_layer(layer, precision, activations)
    # bfloat16 output, 2^-9 each, and inner roundings
    assert relative(simulated(x), RealLinear(layer, activations)(x)) < 6e-3
    other = SimulatedLinear.of_layer(layer, precision, "w4a8" if activations == "w4a4" else "w4a4")
    if precision != "int8":
        assert relative(other(x), simulated(x)) > 0.02  # activations are rounded, and to the mode's grid


def problem_of(precision="int4", activations="w4a4", shifted=False, tokens_=None):
    x = torch.randn(1024, 256) if tokens_ is None else tokens_
    return Problem(
        weight=torch.randn(128, 256) / 16,
        statistics=InputStatistics.from_tokens(x),
        arithmetic=runtime_arithmetic(precision, activations, shifted),
        shift=GELU_SHIFT if shifted else 0.0,
        rank=16,
    )


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_simulated_baseline_errs_as_the_baselines_say(method, shifted):
    problem = problem_of(shifted=shifted, tokens_=torch.nn.functional.gelu(torch.randn(1024, 256)))
    unseen = torch.nn.functional.gelu(torch.randn(512, 256))
    way = METHODS[method]
    adapted = way.adapt(problem)
    part = SimulatedPart.of_fit(way.solve(adapted), adapted, (0, 128), (0, 256), way.see)
    bias = torch.randn(128)
    out = SimulatedLinear.of_parts([part], bias)(unseen) - bias
    # the bias is rounded to bfloat16 here, and there is none there
    assert relative(out, unseen @ problem.weight.T) == pytest.approx(held_out_error(method, problem, unseen), rel=0.02)


def test_other_widths():
    errors = []
    unseen = torch.randn(512, 256)
    problem = problem_of()
    for bits in (8, 4, 3):
        posed = with_bits(problem, bits, bits)
        part = SimulatedPart.of_fit(
            METHODS["nearest"].solve(replace(posed, rank=0)), posed, (0, 128), (0, 256), torch.Tensor.float
        )
        errors.append(relative(SimulatedLinear.of_parts([part], torch.zeros(128))(unseen), unseen @ problem.weight.T))
    assert errors[0] < 0.02 and errors[0] < errors[1] < errors[2]


def test_a_lora_is_added_in_16_bits():
    layer = make_layer(PLANS["columns"], "int4", "w4a4")
    x, down, up = tokens(PLANS["columns"]), torch.randn(384, 8) / 20, torch.randn(256, 8) / 5
    simulated = add_lora(SimulatedLinear.of_layer(layer, "int4", "w4a4"), down, up)
    real = add_lora(RealLinear(layer, "w4a4"), down, up)
    assert isinstance(simulated, WithLora) and isinstance(real, RealLinear)
    assert relative(simulated(x), real(x)) < 8e-3
    plain = RealLinear(layer, "w4a4")(x)
    assert relative(real(x) - plain, x @ down @ up.T) < 0.03


def test_a_modulation_layer():
    plan = LayerPlan.modulation(256, 384)
    weight, bias = torch.randn(256, 384), torch.randn(256)
    layer, _ = quantize_layer(weight, bias, plan, QuantSpec(), "modulation")
    x = torch.randn(3, 384).bfloat16().float()
    dense = DenseLinear.of_layer(layer)
    assert relative(dense(x), RealLinear(layer, "w4a16")(x)) < 6e-3
    assert 0.02 < relative(dense(x), x @ weight.T + bias) < 0.2
