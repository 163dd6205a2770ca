"""Layers of inputs that fill no group of 64 compute what they would compute without the columns of zeros."""

from dataclasses import replace

import pytest
import torch
from planted_layers import draw_tokens, draw_weight

from svdquant_pack.nodes.host.lora import bake
from svdquant_pack.svdq_core.apply_layer import apply_blob, apply_layer, dense_bias, dense_weight
from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.checkpoint.formats import FORMATS
from svdquant_pack.svdq_core.errors import ArchitectureError, CheckpointError
from svdquant_pack.svdq_core.layer import with_tensors
from svdquant_pack.svdq_core.models import FLUX
from svdquant_pack.svdq_core.padding import padded, widen
from svdquant_pack.svdq_core.quantize import InputStatistics, LayerPlan, QuantSpec, quantize_layer
from svdquant_pack.svdq_core.shared_input import SharedInput

N, K = 200, 168  # of eight outputs and eight inputs, as OmniGen 2's 2520 by 2520
MODES = {"int4": ("w4a4", "w4a8", "w4a16"), "nvfp4": ("w4a4", "w4a16"), "int8": ("w4a8", "w4a16")}


def quantized(precision="int4", method="fast", after_gelu=False):
    plan = replace(LayerPlan.whole(N, K, after_gelu), multiples=(8, 1))
    statistics = InputStatistics.from_tokens(draw_tokens(512, K, after_gelu=after_gelu))
    spec = QuantSpec(precision, "w4a8", 16, method)
    bias = torch.linspace(-1, 1, N).bfloat16()
    layer, (report,) = quantize_layer(draw_weight(N, K), bias, plan, spec, "layer", statistics=statistics)
    layer.check("layer")
    return layer, report


def test_sizes():
    assert [padded(n) for n in (64, 65, 2520, 3360)] == [64, 128, 2560, 3392]
    x = torch.ones(2, 3)
    assert widen(x, 3, 1) is x
    assert widen(x, 5, 1).tolist() == [[1, 1, 1, 0, 0]] * 2 and widen(x, 3, 0).tolist() == [[1] * 3] * 2 + [[0] * 3]


def test_gradients_go_through():
    x = torch.ones(2, 3, requires_grad=True)
    widen(x, 5, 1).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("after_gelu", [False, True], ids=["signed", "unsigned"])
@pytest.mark.parametrize("precision", MODES)
@pytest.mark.parametrize("method", ["fast", "best"])
def test_the_layer_is_the_dense_one_that_it_stands_for(precision, method, after_gelu):
    layer, report = quantized(precision, method, after_gelu)
    part = layer.parts[0]
    assert (layer.in_features, layer.out_features, part.in_features, part.width) == (K, N, K, 192)
    for name in ("qweight", "proj_down"):
        wide = part[name] if name == "proj_down" else part[name].T
        assert not wide[-12:].any(), name  # the columns of zeros
    weight, bias = dense_weight(layer), dense_bias(layer)
    assert weight.shape == (N, K) and bias is not None and bias.shape == (N,)
    x = draw_tokens(64, K, after_gelu=after_gelu).bfloat16()
    stands_for = x.float() @ weight.T + bias
    original = x.float() @ draw_weight(N, K).float().T + torch.linspace(-1, 1, N).bfloat16().float()
    assert report.relative_error < 0.1
    for mode in MODES[precision]:
        out = apply_layer(layer, x, mode).float()
        assert out.shape == (64, N)
        limit = {"w4a16": 0.01, "w4a8": 0.02, "w4a4": 0.15}[mode]
        assert (out - stands_for).norm() / stands_for.norm() < limit
        assert (out - original).norm() / original.norm() < 0.2


def test_blobs_and_layers_that_share_their_input_give_the_same_bits():
    layer, _ = quantized()
    x = draw_tokens(64, K).bfloat16()
    expected = apply_layer(layer, x, "w4a8")
    blob, layout = to_blob(replace(layer, input="tokens"))
    slot = SharedInput()
    for shared in (None, slot, slot):
        assert torch.equal(apply_blob(blob, layout.to_json(), layer.bias, x, "w4a8", shared=shared), expected)
    again = layout.read(blob, layer.bias)
    again.check("again")
    assert torch.equal(dense_weight(again), dense_weight(layer))


def test_loras_reach_the_inputs_that_are_there():
    layer, _ = quantized()
    g = torch.Generator().manual_seed(1)
    down, up = (torch.randn(size, 4, generator=g).bfloat16() * 0.1 for size in (K, N))
    x = draw_tokens(64, K).bfloat16()
    expected = apply_layer(layer, x, "w4a16").float() + x.float() @ down.float() @ up.float().T
    found = apply_layer(layer, x, "w4a16", down, up).float()
    assert (found - expected).norm() / expected.norm() < 0.01
    part = bake._bake_part(layer.parts[0], down, up)
    baked = replace(layer, parts=(part,))
    baked.check("baked")
    assert (dense_weight(baked) - dense_weight(layer) - up.float() @ down.float().T).norm() < 0.05


def test_other_widths_are_refused():
    layer, _ = quantized()
    part = with_tensors(layer.parts[0], smooth_factor=torch.ones(K))
    with pytest.raises(CheckpointError, match=r"smooth_factor has shape \(168,\), expected \(192,\)"):
        part.check("layer")


@pytest.mark.parametrize("form", ["nunchaku", "comfy"])
def test_formats_of_others_have_no_place_for_it(form):
    layer, _ = quantized()
    with pytest.raises(ArchitectureError, match=r"168 inputs.* Write "):
        list(FORMATS[form](FLUX).layer_outputs("double_blocks.0.img_attn.proj", layer))
