"""The norms of a loaded model are ours, with the host's names, keys and values, wherever the weights are."""

import comfy.ops
import pytest
import torch
from host_models import put_tiny
from sampling import relative_error, rounding, sample_flux

from svdquant_pack.nodes.host.model import norms
from svdquant_pack.nodes.host.model.build import load_model
from svdquant_pack.nodes.host.model.norms import KernelLayerNorm, KernelRMSNorm


@pytest.fixture
def model(host):
    folder = host.model_folder("diffusion_models")
    with torch.inference_mode():
        return load_model(str(folder / put_tiny(folder)), "w4a8")


def test_every_norm_of_the_blocks_is_ours(model):
    found = [m for m in model.model.modules() if isinstance(m, (torch.nn.LayerNorm, torch.nn.RMSNorm))]
    assert {type(m) for m in found} == {KernelLayerNorm, KernelRMSNorm}


def test_pictures_are_those_of_the_hosts_norms(model, monkeypatch):
    calls = []

    def counted(name, compute):
        monkeypatch.setattr(norms, name, lambda *operands: calls.append(name) or compute(*operands))

    counted("rms_norm", norms.rms_norm)
    counted("layer_norm", norms.layer_norm)
    ours = sample_flux(model)
    assert {"rms_norm", "layer_norm"} == set(calls)
    for mine, host in (
        (KernelRMSNorm, comfy.ops.manual_cast.RMSNorm),
        (KernelLayerNorm, comfy.ops.manual_cast.LayerNorm),
    ):
        monkeypatch.setattr(mine, "forward_comfy_cast_weights", host.forward_comfy_cast_weights)
    assert relative_error(ours, sample_flux(model)) < rounding(1e-6)


def test_a_layer_norm_with_weights_is_the_hosts():
    norm = KernelLayerNorm(8)
    torch.nn.init.constant_(norm.weight, 3.0), torch.nn.init.constant_(norm.bias, 1.0)
    x = torch.randn(2, 8)
    assert torch.equal(norm(x), torch.nn.functional.layer_norm(x, (8,), norm.weight, norm.bias))


def test_an_rms_norm_without_weights_is_the_hosts():
    norm = KernelRMSNorm(8, elementwise_affine=False)
    x = torch.randn(2, 8)
    assert torch.equal(norm(x), torch.nn.functional.rms_norm(x, (8,)))
