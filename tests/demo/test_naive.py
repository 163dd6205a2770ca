"""The node of the naive columns: plain rounding of the right layers, weights and activations."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from svdquant_pack.demo.install import FLUX, MODELS

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def naive(demo_nodes):
    return sys.modules["svdquant_demo.naive"]


def test_rounding(naive):
    values = torch.randn(5, 192)
    for bits, most in ((4, 15), (3, 7)):
        rounded = naive.round_symmetric(values, bits)
        units = rounded.unflatten(-1, (3, 64)) / values.unflatten(-1, (3, 64)).abs().amax(-1, keepdim=True)
        units *= 2 ** (bits - 1) - 1
        assert torch.allclose(units, units.round(), atol=1e-4) and len(units.round().unique()) <= most
        half_step = values.unflatten(-1, (3, 64)).abs().amax(-1) / (2 ** (bits - 1) - 1) / 2
        assert ((rounded - values).abs().unflatten(-1, (3, 64)).amax(-1) <= half_step * 1.001).all()
    between = naive.round_between(values, 4)
    assert (between - values).norm() < (naive.round_symmetric(values, 4) - values).norm()


def test_only_linears_of_the_blocks_are_rounded(naive):
    tensors = load_file(MODELS / FLUX)
    rounded = naive.round_weights(tensors, 3)
    changed = {name for name in tensors if not torch.equal(tensors[name], rounded[name])}
    assert changed == {
        name for name, t in tensors.items() if "_blocks." in name and name.endswith(".weight") and t.ndim == 2
    }
    modulation = "double_blocks.0.img_mod.lin.weight"
    assert torch.equal(rounded[modulation], naive.round_between(tensors[modulation], 4))


def test_the_loaded_model_rounds_activations_too(host, demo_nodes, naive):
    shutil.copy(MODELS / FLUX, host.model_folder("diffusion_models") / FLUX)
    model = demo_nodes["DemoNaiveLoader"].execute(FLUX, 4).args[0]
    linear = model.model.diffusion_model.single_blocks[0].linear1
    tensors = load_file(MODELS / FLUX)
    weight = naive.round_symmetric(tensors["single_blocks.0.linear1.weight"], 4).float()
    x = torch.randn(3, 256)
    expected = naive.round_symmetric(x, 4) @ weight.T + tensors["single_blocks.0.linear1.bias"].float()
    torch.testing.assert_close(linear(x), expected, rtol=2e-2, atol=2e-2)
    modulation = model.model.diffusion_model.single_blocks[0].modulation.lin
    assert not modulation._forward_pre_hooks and linear._forward_pre_hooks
