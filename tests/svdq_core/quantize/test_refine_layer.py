"""RefinedLinear: computes what the layer of a file does, trains what may move, comes back as such a layer."""

from functools import lru_cache

import pytest
import torch
from cheap_quantizing import SPEC, make_cheap
from planted_layers import draw_tokens, draw_weight

from svdquant_pack.kernels.part_weights import dequantize
from svdquant_pack.svdq_core.apply_layer import apply_layer, dense_bias, dense_weight
from svdquant_pack.svdq_core.quantize.one_layer import quantize_layer
from svdquant_pack.svdq_core.quantize.part_plan import LayerPlan
from svdquant_pack.svdq_core.quantize.refine_layer import RefinedLinear, make_trainable
from svdquant_pack.svdq_core.quantize.spec import QuantSpec


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    make_cheap(monkeypatch)


PLANS = {
    "whole": LayerPlan.whole(128, 128),
    "after gelu": LayerPlan.whole(128, 128, after_gelu=True),
    "rows": LayerPlan.stack_rows((128, 128), 128),
    "columns": LayerPlan.stack_columns(128, (128, 128), (False, True)),
    "modulation": LayerPlan.modulation(128, 128),
}


@lru_cache
def quantized(plan="whole", precision="int4", bias=True, rank=16):
    parts = PLANS[plan].parts
    rows, columns = max(p.rows[1] for p in parts), max(p.columns[1] for p in parts)
    given = torch.linspace(-1, 1, rows).to(torch.bfloat16) if bias else None
    spec = QuantSpec(precision, rank=rank, score_tokens=SPEC.score_tokens)
    return quantize_layer(draw_weight(rows, columns), given, PLANS[plan], spec, "layer")[0]


@pytest.mark.parametrize("precision", ["int4", "nvfp4", "int8"])
@pytest.mark.parametrize("plan", PLANS)
def test_untrained_layer_is_the_file_layer(plan, precision):
    layer = quantized(plan, precision)
    refined = RefinedLinear(layer)
    x = draw_tokens(8, layer.in_features).view(2, 4, -1)
    expected = x @ dense_weight(layer).T + dense_bias(layer)
    assert torch.allclose(refined(x), expected, rtol=1e-4, atol=1e-4)
    stored = refined.stored("layer")
    for before, after in zip(layer.parts, stored.parts, strict=True):
        assert torch.equal(before["qweight"], after["qweight"])
        assert torch.equal(dequantize(before.tensors, before.scheme), dequantize(after.tensors, after.scheme))
        for name in before.tensors.keys() - {"wtscale"}:
            assert torch.equal(before[name], after[name]), name
    assert torch.allclose(stored.bias.float(), layer.bias.float(), atol=2e-2)  # one 16-bit step
    stored.check("layer")


@pytest.mark.parametrize("plan", ["whole", "after gelu", "columns"])
def test_eight_bit_activations_are_those_of_w4a8(plan):
    layer = quantized(plan)
    x = draw_tokens(64, layer.in_features)
    exact, rounded = RefinedLinear(layer)(x), RefinedLinear(layer, bits=8)(x)
    runtime = apply_layer(layer, x, "w4a8")
    noise = float((rounded - exact).detach().norm())
    assert 0 < noise < 0.02 * float(exact.detach().norm())
    assert float((rounded - runtime).detach().norm()) < 1.5 * noise  # the runtime rounds the weight to 8 bits as well


@pytest.mark.parametrize("precision", ["int4", "nvfp4", "int8"])
def test_every_trained_tensor_reaches_the_file(precision):
    layer = quantized("after gelu", precision)
    refined = RefinedLinear(layer)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter, _ in refined.parameters_by_pace():
            parameter += 0.1 * torch.rand_like(parameter)
    x = draw_tokens(16, layer.in_features)
    stored = refined.stored("layer")
    got = x @ dense_weight(stored).T + dense_bias(stored)
    assert float((got - refined(x)).norm()) < 0.02 * float(got.norm())
    moved = {
        n
        for n, t in layer.parts[0].tensors.items()
        if n in stored.parts[0].tensors and not torch.equal(t.float(), stored.parts[0][n].float())
    }
    assert moved == {"wscales", "proj_down", "proj_up"}
    assert not torch.equal(stored.bias, layer.bias)
    refined.take(stored)
    assert torch.allclose(refined(x), got, rtol=1e-3, atol=1e-3)


def test_gradient_reaches_e4m3_scales_through_their_rounding():
    refined = RefinedLinear(quantized(precision="nvfp4"))
    refined(draw_tokens(4, 128)).square().sum().backward()
    part = refined.parts[0]
    assert all(float(p.grad.abs().max()) > 0 for p in (part.gains, part.channel_gains, part.down, part.up))


def test_layer_without_bias_and_branch():
    refined = RefinedLinear(quantized(bias=False, rank=0))
    assert [tuple(p.shape) for p, _ in refined.parameters_by_pace()] == [(128, 2)]
    assert refined.stored("layer").bias is None


def test_shared_input_side_stays_shared():
    left = quantized()
    right = quantized()  # the same bits: as of q and k, which read one tensor
    other = quantized("after gelu")
    made = make_trainable({"q": left, "k": right, "other": other}, torch.float32, None)
    assert made["q"].parts[0].down is made["k"].parts[0].down
    assert made["other"].parts[0].down is not made["q"].parts[0].down
    with torch.no_grad():
        made["q"].parts[0].down += 0.5
    q, k = made["q"].stored("q"), made["k"].stored("k")
    assert torch.equal(q.parts[0]["proj_down"], k.parts[0]["proj_down"])
    assert not torch.equal(q.parts[0]["proj_down"], left.parts[0]["proj_down"])
