"""The random PixArt has the host's names and shapes, and is the same every time."""

import pytest
import torch

from svdquant_pack.demo import random_pixart


@pytest.fixture(scope="module")
def weights():
    return random_pixart.random_pixart()


def test_weights_are_the_same_every_time(weights):
    again = random_pixart.random_pixart()
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert all(weight.dtype == torch.bfloat16 for weight in weights.values())


def test_layers_differ_from_each_other(weights):
    assert not torch.equal(weights["blocks.0.attn.proj.weight"], weights["blocks.0.cross_attn.proj.weight"])


@pytest.mark.host
def test_names_and_shapes_are_the_hosts(weights, host):
    import comfy.ldm.pixart.pixartms
    import comfy.ops

    model = comfy.ldm.pixart.pixartms.PixArtMS(
        depth=1,
        model_max_length=300,
        micro_condition=False,
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == expected


@pytest.mark.host
@pytest.mark.parametrize("half", ["Encoder", "Decoder"])
def test_autoencoder_is_the_hosts(half, host):
    import comfy.taesd.taesd

    expected = {k: tuple(w.shape) for k, w in getattr(comfy.taesd.taesd, half)(latent_channels=4).state_dict().items()}
    found = random_pixart.random_autoencoder(encoder=half == "Encoder")
    assert {name: tuple(weight.shape) for name, weight in found.items()} == expected
