"""Weights that a graph may rely on: all on the card, none computed in each step, paged ones held while it runs."""

import comfy_aimdo.model_vbar as pages
import pytest
import torch
from sampling import sample_flux

from svdquant_pack.nodes.host.graphs.addresses import Weights
from svdquant_pack.nodes.host.model.build import load_model

CPU = torch.device("cpu")


@pytest.fixture
def loaded(path):
    model = load_model(str(path), "w4a16")
    sample_flux(model, steps=1)  # the host notes the patcher that it samples with
    model.model.current_patcher = model
    return model.model


def block(model):
    return model.diffusion_model.double_blocks[0]


def test_weights_in_place_are_the_same(loaded):
    weights = Weights(loaded, CPU)
    assert weights.same(loaded)
    with weights.pinned() as there:
        assert there


def test_weights_elsewhere(loaded):
    with pytest.raises(LookupError, match="lies on cpu"):
        Weights(loaded, torch.device("cuda", 0))


def test_weights_computed_in_each_step(loaded, monkeypatch):
    monkeypatch.setattr(block(loaded).img_attn.qkv, "weight_function", [lambda w: w])
    with pytest.raises(LookupError, match="computed in each step"):
        Weights(loaded, CPU)


@pytest.mark.parametrize("kind", ["forward", "hook"])
def test_replaced_forwards(loaded, kind):
    module = block(loaded).img_mlp
    if kind == "hook":
        handle = module.register_forward_hook(lambda *_: None)
    else:
        module.forward = module.forward
    with pytest.raises(LookupError, match="was replaced"):
        Weights(loaded, CPU)
    if kind == "hook":
        handle.remove()
    else:
        del module.forward
    weights = Weights(loaded, CPU)
    module.forward = module.forward  # later, as a bypass LoRA does
    assert not weights.same(loaded)


def test_a_weight_that_moved(loaded):
    weights, linear = Weights(loaded, CPU), block(loaded).img_attn.qkv
    linear.weight = torch.nn.Parameter(linear.weight.data.clone(), requires_grad=False)
    assert not weights.same(loaded)


def test_other_factors(loaded):
    weights, linear = Weights(loaded, CPU), block(loaded).img_attn.qkv
    linear.install_lora(linear.lora, {"lora_down": torch.zeros(128, 16), "lora_up": torch.zeros(384, 16)})
    assert not weights.same(loaded)


def test_other_patches(loaded):
    weights = Weights(loaded, CPU)
    loaded.current_patcher = loaded.current_patcher.clone()
    assert weights.same(loaded)
    loaded.current_patcher.patches_uuid = object()
    assert not weights.same(loaded)


class _Pages:
    """Plays the host's paging."""

    def __init__(self, monkeypatch):
        self.held, self.answers = [], {}
        monkeypatch.setattr(pages, "vbar_fault", self.fault)
        monkeypatch.setattr(pages, "vbar_unpin", self.held.remove)

    def fault(self, page):
        if self.answers[page] is not None:
            self.held.append(page)
        return self.answers[page]


@pytest.fixture
def paged(loaded, monkeypatch):
    found = _Pages(monkeypatch)
    for name in ("img_attn", "txt_attn"):
        linear = getattr(block(loaded), name).qkv
        linear._v, linear._v_signature = name, bytearray(b"1234")
        found.answers[name] = bytearray(b"1234")
    return found


def test_paged_weights_are_held_while_the_graph_runs(loaded, paged):
    with Weights(loaded, CPU).pinned() as there:
        assert there and paged.held == ["img_attn", "txt_attn"]
    assert paged.held == []


@pytest.mark.parametrize("answer", [None, bytearray(b"1235")])
def test_paged_weights_that_were_driven_out(loaded, paged, answer):
    weights = Weights(loaded, CPU)
    paged.answers["txt_attn"] = answer
    with weights.pinned() as there:
        assert not there
    assert paged.held == []


def test_paged_weights_that_came_back_as_others(loaded, paged):
    weights, linear = Weights(loaded, CPU), block(loaded).img_attn.qkv
    linear._v_signature = bytearray(b"1234")  # loaded anew: the address may be the same, and the patches others
    with weights.pinned() as there:
        assert not there


def test_paged_weights_that_are_not_there_yet(loaded, paged):
    block(loaded).img_attn.qkv._v_signature = None
    with pytest.raises(LookupError, match="not all weights are on the card"):
        Weights(loaded, CPU)
