"""What a loaded model tells the compiler about itself: each kind of layer once, as it will run."""

import pytest
import torch
from host_models import put_tiny

from svdquant_pack.nodes.host.model import build, compile_ahead
from svdquant_pack.nodes.host.model.build import load_model
from svdquant_pack.nodes.host.model.compile_ahead import form_of
from svdquant_pack.nodes.host.model.quantized_linear import SVDQuantLinear
from svdquant_pack.svdq_core.blob import BlobLayout
from svdquant_pack.svdq_core.kernel_plan import run_layer


@pytest.fixture
def model(host, monkeypatch):
    """The tiny FLUX, which folds GELUs as on Hopper."""
    monkeypatch.setenv("SVDQUANT_FOLD_GELU", "1")
    folder = host.model_folder("diffusion_models")
    with torch.inference_mode():
        return load_model(str(folder / put_tiny(folder)), "w4a8").model


def test_each_kind_of_layer_is_told_once_with_the_gelu_that_it_applies(model):
    form, hidden = form_of(model, "w4a8"), model.diffusion_model.hidden_size
    layouts = [BlobLayout.from_json(layer.layout) for layer in form.layers]
    sizes = {
        (layout.out_features, layout.in_features, layer.gelu)
        for layer, layout in zip(form.layers, layouts, strict=True)
    }
    assert (4 * hidden, hidden, "output") in sizes and (3 * hidden, hidden, None) in sizes
    quantized = [module for module in model.modules() if isinstance(module, SVDQuantLinear) and module.quantized]
    assert len(form.layers) == len(set(form.layers)) < len(quantized)
    assert {layer.bias for layer in form.layers} == {module.bias.dtype for module in quantized}
    assert (form.compute, form.dtype) == ("w4a8", model.get_dtype_inference())
    head = hidden // model.diffusion_model.num_heads
    assert {(norm.width, norm.of_heads) for norm in form.norms} == {(head, True), (hidden, False)}


def test_every_layer_can_run_on_meta_tensors(model):
    form = form_of(model, "w4a8")
    for layer in form.layers:
        for rank in (0, 16):
            run_layer(layer, 32, rank, "w4a16", torch.bfloat16)


def test_a_model_is_handed_over_when_it_has_been_built(host, monkeypatch):
    told = []
    monkeypatch.setattr(compile_ahead, "compile_model", lambda form, device: told.append((form, device)))
    folder = host.model_folder("diffusion_models")
    with torch.inference_mode():
        patcher = load_model(str(folder / put_tiny(folder)), "w4a8")
    assert told == [(form_of(patcher.model, "w4a8"), build.comfy.model_management.get_torch_device())]
