"""The LoRA: nothing at first, named as the host names it, on the layers of the shipped one."""

import torch
from safetensors.torch import load_file

from svdquant_pack.demo.install import LORA, MODELS
from svdquant_pack.demo.scenes import TOKENS
from svdquant_pack.research.training.lora import PREFIX, attach, lora_weights
from svdquant_pack.research.training.small_flux import Flux, rotary_angles


def test_shipped_lora_has_these_names_and_sizes():
    adapters = attach(Flux(), 16)
    shipped = load_file(MODELS / LORA)
    weights = lora_weights(adapters)
    assert {name: weight.shape for name, weight in weights.items()} == {name: w.shape for name, w in shipped.items()}
    assert all(name.startswith(PREFIX) for name in shipped)


def test_an_adapter_adds_the_product_and_nothing_at_first():
    model = Flux()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    inputs = (torch.randn(1, 16, 4, 4), torch.tensor([0.5]), torch.randn(1, TOKENS, 128), torch.randn(1, 64))
    inputs = (*inputs, torch.tensor([3.5]))
    angles = rotary_angles(2, 2, TOKENS, "cpu")
    with torch.no_grad():
        before = model(*inputs, angles=angles)
        adapters = attach(model, 4)
        torch.testing.assert_close(model(*inputs, angles=angles), before)
        name = "single_blocks.1.linear1"
        torch.nn.init.normal_(adapters[name].up, std=0.1)
        with_adapter = model(*inputs, angles=angles)
        assert (with_adapter - before).abs().max() > 1e-4
        adapters[name].base.weight += adapters[name].up @ adapters[name].down
        adapters[name].up.zero_()
        torch.testing.assert_close(model(*inputs, angles=angles), with_adapter, atol=1e-4, rtol=1e-4)


def test_only_the_adapter_is_trained():
    model = Flux()
    adapters = attach(model, 4)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {f"{name}.{part}" for name in adapters for part in ("down", "up")}
