"""Inputs worked out from the weights: the host's own forward sees the same statistics, and the errors get smaller."""

import pytest
import torch
from pack import ROOT
from safetensors.torch import load_file

from svdquant_pack.kernels.reference import dequantize_awq
from svdquant_pack.svdq_core.linear import apply_layer
from svdquant_pack.svdq_core.models import FLUX
from svdquant_pack.svdq_core.quantize import QuantSpec, quantize_layer
from svdquant_pack.svdq_core.quantize.known_inputs import TOKENS, FluxInputs
from svdquant_pack.svdq_core.quantize.model import plan_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights():
    """The demo's trained tiny FLUX."""
    return load_file(ROOT / "demo" / "models" / "demo_flux_bf16.safetensors")


@pytest.fixture(scope="module")
def inputs(weights):
    return FluxInputs(weights, list(weights), 0, CPU)


def linears(block):
    return {linear.host for linear in next(b for b in FLUX.blocks if b.host == block).linears}


@pytest.mark.parametrize("block", ["double_blocks", "single_blocks"])
def test_every_layer_of_a_block_has_an_input(weights, inputs, block):
    known = inputs.of_block(f"{block}.1")
    assert {name.removeprefix(f"{block}.1.") for name in known} == linears(block)
    for name, statistics in known.items():
        assert statistics.tokens.shape == (TOKENS, weights[f"{name}.weight"].shape[1])
        assert statistics.tokens.isfinite().all()


def test_the_same_seed_draws_the_same(weights, inputs):
    again = FluxInputs(weights, list(weights), 0, CPU).of_block("single_blocks.0")
    other = FluxInputs(weights, list(weights), 1, CPU).of_block("single_blocks.0")
    first = inputs.of_block("single_blocks.0")["single_blocks.0.linear1"].tokens
    assert torch.equal(again["single_blocks.0.linear1"].tokens, first)
    assert not torch.equal(other["single_blocks.0.linear1"].tokens, first)


def test_channels_of_an_adaptive_norm_differ_as_their_scales_do(inputs):
    """Trained scales spread; of the standard-normal tokens that are drawn otherwise, all have mean square 1."""
    spread = inputs.of_block("double_blocks.0")["double_blocks.0.img_attn.qkv"].mean_square
    assert spread.max() > 10 * spread.min()


def test_smoothing_on_known_inputs_is_better_on_them(weights, inputs):
    name, spec = "double_blocks.0.img_mlp.0", QuantSpec(activations="w4a4")
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    statistics = inputs.of_block("double_blocks.0")[name]
    plan = plan_for(next(li for li in FLUX.blocks[0].linears if li.host == "img_mlp.0"), *weight.shape)
    errors = [
        output_error(quantize_layer(weight, bias, plan, spec, name, s)[0], weight, bias, statistics.tokens)
        for s in (statistics, None)
    ]
    assert errors[0] < 0.9 * errors[1]


def output_error(layer, weight, bias, x):
    exact = x @ weight.float().T + bias.float()
    return float((apply_layer(layer, x, "w4a4") - exact).norm() / exact.norm())


def test_the_mean_of_a_modulation_survives_its_rounding(weights, inputs):
    """Its input hardly varies: without the correction most of the rounding error is a constant offset."""
    name, spec = "single_blocks.0.modulation.lin", QuantSpec()
    weight, bias = weights[f"{name}.weight"].float(), weights[f"{name}.bias"].float()
    x = inputs.of_block("single_blocks.0")[name].tokens
    plan = plan_for(FLUX.blocks[1].linears[0], *weight.shape)
    errors = []
    for statistics in (inputs.of_block("single_blocks.0")[name], None):
        layer = quantize_layer(weight, bias, plan, spec, name, statistics)[0]
        part = layer.parts[0]
        rounded = dequantize_awq(part["qweight"], part["wscales"], part["wzeros"])
        difference = x @ (rounded - weight).T + (layer.bias.float() - bias)
        errors.append(float(difference.mean(dim=0).norm()))
    assert errors[0] < 0.1 * errors[1]
