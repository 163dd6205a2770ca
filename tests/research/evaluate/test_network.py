"""The network that is evaluated is the host's: the same velocity and the same picture; layers can be exchanged."""

import shutil

import pytest
import torch
from torch import nn

from svdquant_pack.demo.install import FLUX, LORA, MODELS
from svdquant_pack.research.evaluate.evaluated_scenes import evaluated_scenes
from svdquant_pack.research.evaluate.network import (
    block_linears,
    latents_by_step,
    load_flux,
    lora_factors,
    with_layers,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes():
    return evaluated_scenes(2, 0, CPU)


def relative(value, reference):
    return float((value - reference).norm() / reference.norm())


def test_the_host_draws_the_same_latents(host, scenes):
    shutil.copy(MODELS / FLUX, host.model_folder("diffusion_models") / FLUX)
    (model,) = host.call("UNETLoader", unet_name=FLUX, weight_dtype="default")
    guided = [[scenes.context, {"pooled_output": scenes.pooled, "guidance": 3.5}]]
    empty = {"samples": torch.zeros(2, 16, 32, 32)}
    (drawn,) = host.call(
        "KSampler",
        model=model,
        seed=9,
        steps=2,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        positive=guided,
        negative=guided,
        latent_image=empty,
        denoise=1.0,
    )
    noise = torch.randn(2, 16, 32, 32, generator=torch.manual_seed(9))  # as the host draws it
    *_, latents = latents_by_step(load_flux(CPU), scenes, noise, 2)
    assert relative(latents, model.model.process_latent_in(drawn["samples"])) < 1e-4


def test_layers_are_exchanged_in_a_copy(scenes):
    model = load_flux(CPU)
    linears = block_linears(model)
    assert "double_blocks.0.img_mlp.0" in linears and "single_blocks.2.linear2" in linears and "img_in" not in linears

    class Zero(nn.Module):
        def forward(self, x):
            return torch.zeros(*x.shape[:-1], 256)

    changed = with_layers(model, {"single_blocks.2.linear2": Zero(), "double_blocks.0.img_mlp.2": Zero()})
    (before,), (after,) = (list(latents_by_step(m, scenes, scenes.noise, 1)) for m in (model, changed))
    assert relative(after, before) > 0.01
    assert torch.equal(next(latents_by_step(model, scenes, scenes.noise, 1)), before)


def test_lora_factors_fit_their_layers():
    linears = block_linears(load_flux(CPU))
    factors = lora_factors()
    assert factors and (MODELS / LORA).exists()
    for name, (down, up) in factors.items():
        assert (down.shape[0], up.shape[0]) == (linears[name].in_features, linears[name].out_features)
