"""The small FLUX is the host's: names, sizes and arithmetic."""

import pytest
import torch
from safetensors import safe_open

from svdquant_pack.demo.captions import Conditioning, draw_captions
from svdquant_pack.demo.install import DECODER, ENCODER, FLUX, MODELS
from svdquant_pack.demo.model_files import read_model
from svdquant_pack.demo.scenes import TOKENS
from svdquant_pack.research.training.sampler import SHIFT, schedule
from svdquant_pack.research.training.small_flux import CHANNELS, Flux, Shape, rotary_angles
from svdquant_pack.research.training.taef1 import decoder, encoder

CPU = torch.device("cpu")


def shapes(path):
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def arguments(count=3, side=8):
    generator = torch.Generator().manual_seed(0)
    context, pooled = Conditioning("cpu")(draw_captions(count, generator).word_ids())
    x = torch.randn(count, CHANNELS, side, side, generator=generator)
    time = torch.linspace(0.1, 0.9, count)
    return x, time, context, pooled, torch.full((count,), 3.5), rotary_angles(side // 2, side // 2, TOKENS, "cpu")


@pytest.mark.parametrize(("make", "file"), [(Flux, FLUX), (encoder, ENCODER), (decoder, DECODER)])
def test_tensors_are_those_of_the_file(make, file):
    assert {name: tuple(weight.shape) for name, weight in make().state_dict().items()} == shapes(MODELS / file)


def test_it_starts_as_zero_and_learns_everywhere():
    model = Flux(Shape(hidden=128, double_blocks=1, single_blocks=1))
    *inputs, angles = arguments()
    assert not model(*inputs, angles=angles).any()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    model(*inputs, angles=angles).square().mean().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_schedule_goes_from_noise_to_picture():
    shares = schedule(20)
    assert (len(shares), shares[0], shares[-1]) == (21, pytest.approx(1.0), 0.0)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.host
def test_velocity_is_that_of_the_host(host):
    import comfy.ops
    from comfy.ldm.flux.model import Flux as HostFlux

    model = read_model(Flux(), MODELS / FLUX, CPU)
    sizes = {
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "vec_in_dim": 64,
        "context_in_dim": 128,
        "patch_size": 2,
    }
    sizes |= {"hidden_size": 256, "num_heads": 2, "mlp_ratio": 4.0, "depth": 2, "depth_single_blocks": 3}
    sizes |= {"axes_dim": [16, 56, 56], "txt_ids_dims": [], "theta": 10000, "qkv_bias": True, "guidance_embed": True}
    theirs = HostFlux(**sizes, operations=comfy.ops.disable_weight_init, dtype=torch.float32, device="cpu")
    missing = theirs.load_state_dict(_host_names(model.state_dict(), theirs.state_dict()))
    assert not missing.missing_keys
    x, time, context, pooled, guidance, angles = arguments()
    with torch.no_grad():
        ours = model(x, time, context, pooled, guidance, angles=angles)
        expected = theirs(x, time, context, pooled, guidance)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.host
def test_schedule_is_the_simple_one_of_the_host(host):
    import comfy.model_sampling
    import comfy.samplers

    class Sampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        pass

    sampling = Sampling()
    sampling.set_parameters(shift=SHIFT)
    for steps in (4, 8, 20):
        expected = comfy.samplers.simple_scheduler(sampling, steps)
        torch.testing.assert_close(torch.tensor(schedule(steps)), expected, atol=1e-4, rtol=0)


def _host_names(weights, theirs):
    """The norms' tensors end in `scale` or in `weight`, as the host's version has it."""
    return {
        name if name in theirs else name.removesuffix("scale") + "weight": weight for name, weight in weights.items()
    }
