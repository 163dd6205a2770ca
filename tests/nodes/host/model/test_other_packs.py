"""What other packs do to the modules of a loaded model: right, or refused in a sentence; never a silent change."""

import copy

import pytest
import torch
from lora_files import diffusers_lora
from sampling import relative_error, rounding, sample_flux

from svdquant_pack.nodes.host.model import build
from svdquant_pack.nodes.host.model.fold import FoldedGELU
from svdquant_pack.svdq_core.errors import ArchitectureError, SVDQuantError

LAYER = "double_blocks.0.img_mlp.0"
SAME = rounding(2e-6)


@pytest.fixture
def fresh(path):
    """A model that nothing else uses."""
    return build.load_model(str(path), "w4a16")


def layer_of(model) -> torch.nn.Linear:
    return model.model.diffusion_model.get_submodule(LAYER)


def put(model, theirs: torch.nn.Module) -> None:
    """In the place of the layer."""
    parent, _, name = LAYER.rpartition(".")
    setattr(model.model.diffusion_model.get_submodule(parent), name, theirs)


@pytest.mark.parametrize("own", [True, False], ids=["its own", "something else"])
def test_a_state_dict_loaded_into_it_later(fresh, plain, own):
    """As packs do that bring weights for modules of theirs, with strict=False."""
    network = fresh.model.diffusion_model
    network.load_state_dict(network.state_dict() if own else {"theirs.weight": torch.ones(2)}, strict=False)
    assert torch.equal(sample_flux(fresh), plain)


def test_16_bit_weights_loaded_into_it_later(fresh, plain):
    weight = torch.zeros(layer_of(fresh).out_features, layer_of(fresh).in_features)
    with pytest.raises(ArchitectureError, match=rf"{LAYER}: another node wants to load a 16-bit weight"):
        fresh.model.diffusion_model.load_state_dict({f"{LAYER}.weight": weight}, strict=False)
    assert torch.equal(sample_flux(fresh), plain)


@pytest.mark.parametrize("way", ["parameter", "object patch"])
def test_a_tensor_of_theirs_in_place_of_the_weight(fresh, plain, way):
    layer = layer_of(fresh)
    theirs = torch.nn.Parameter(torch.zeros(layer.out_features, layer.in_features), requires_grad=False)
    patched = fresh.clone()
    if way == "parameter":
        ours, layer.weight = layer.weight, theirs
    else:
        patched.add_object_patch(f"diffusion_model.{LAYER}.weight", theirs)
    with pytest.raises(SVDQuantError, match=r"packed in 4 bits, and its weight is now float32 \(1024, 256\)"):
        sample_flux(patched)
    if way == "parameter":
        layer.weight = ours
    assert torch.equal(sample_flux(fresh), plain)


def test_a_module_of_theirs_in_place_of_a_layer(fresh, dense, add):
    """It is the host's from then on, patches included."""
    put(fresh, copy.deepcopy(dense.model.diffusion_model.get_submodule(LAYER)))
    lora = {key: t for key, t in diffusers_lora(5).items() if ".transformer_blocks.0.ff.net.0" in key}
    assert len(lora) == 3
    expected = sample_flux(add(dense, lora, 0.8))
    assert relative_error(expected, sample_flux(dense)) > 1e-3
    assert relative_error(sample_flux(add(fresh, lora, 0.8)), expected) < SAME


@pytest.mark.parametrize("where", ["input", "output"])
def test_a_module_of_theirs_around_a_layer_that_computes_a_gelu(path, plain, monkeypatch, where):
    """As PEFT wraps layers: what is added to the result belongs in front of the GELU."""

    class Around(torch.nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

        def forward(self, x):
            return self.base_layer(x) + 1.0

    pictures = []
    for folded in (None, where):
        monkeypatch.setattr(build, "folds_gelu", lambda device, compute, folded=folded: folded)
        model = build.load_model(str(path), "w4a16")
        assert any(isinstance(module, FoldedGELU) for module in model.model.modules()) == (folded is not None)
        put(model, Around(layer_of(model)))
        pictures.append(sample_flux(model))
    assert relative_error(pictures[0], plain) > 1e-3
    assert relative_error(pictures[1], pictures[0]) < SAME


@pytest.mark.parametrize("what", ["hook", "forward", "grad"])
def test_what_only_looks_changes_nothing(fresh, plain, what):
    for module in fresh.svdquant_layers().values():
        if what == "hook":
            module.register_forward_hook(lambda *_: None)
        elif what == "forward":
            module.forward = (lambda usual: lambda *args, **more: usual(*args, **more))(module.forward)
        else:
            module.float()
    assert relative_error(sample_flux(fresh), plain) < SAME
