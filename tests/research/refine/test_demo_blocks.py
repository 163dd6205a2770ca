"""The demo's FLUX in pieces: block after block it computes what it does as a whole, other layers where they belong."""

import pytest
import torch
from torch import nn

from svdquant_pack.research.evaluate.evaluated_scenes import calibration_scenes
from svdquant_pack.research.evaluate.network import load_flux
from svdquant_pack.research.refine import states
from svdquant_pack.research.refine.demo_blocks import DemoRuns, VelocityLoss
from svdquant_pack.research.refine.states import draw_noise, draw_states

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return load_flux(CPU)


@pytest.fixture(scope="module")
def batches(model):
    scenes = calibration_scenes(1, CPU)
    before, states.SAMPLING_STEPS = states.SAMPLING_STEPS, 3
    try:
        return draw_states([model], scenes, 1, "step", 0)
    finally:
        states.SAMPLING_STEPS = before


def test_states_are_those_of_the_sampler(batches):
    assert sorted(float(batch.time) for batch in batches) == pytest.approx([0.612, 0.863, 1.0], abs=1e-3)
    last = min(batches, key=lambda batch: float(batch.time))
    assert float(last.weight) == max(float(batch.weight) for batch in batches)  # its step is the longest
    drawn = draw_noise(2, calibration_scenes(1, CPU), 4, 0)
    assert len(drawn) == 2 and drawn[0].x.shape == (4, 16, 32, 32) and float(drawn[0].time.min()) > 0


def test_block_after_block_is_the_whole_model(model, batches):
    seen = []
    handle = model.final_layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        batches[0].velocity(model)
    handle.remove()
    runs = DemoRuns(model, batches[:1], "same")
    order = []
    while (block := runs.advance()) is not None:
        order.append(block)
        run = runs.here()
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(run.output(0, {}), run.target(0), strict=True))
        runs.leave({})
    assert order == ["double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1", "single_blocks.2"]
    (both,) = runs.samples[0].quantized
    assert torch.equal(both[:, runs.samples[0].words :], seen[0])


def test_other_layers_are_in_their_places_for_a_call_alone(model, batches):
    class Zeros(nn.Module):
        def forward(self, x):
            return x.new_zeros(*x.shape[:-1], 256)

    runs = DemoRuns(model, batches[:1], "dense")
    block = runs.advance()
    own = model.get_submodule(f"{block}.img_mlp.2")
    with torch.no_grad():
        image, text = runs.here().output(0, {f"{block}.img_mlp.2": Zeros()})
    expected = runs.here().target(0)
    assert not torch.equal(image, expected[0]) and torch.equal(text, expected[1])
    assert model.get_submodule(f"{block}.img_mlp.2") is own


def test_the_whole_model_loses_nothing_to_itself_and_its_gradients_arrive(model, batches):
    name = "single_blocks.0.linear2"
    linear = nn.Linear(1280, 256)
    linear.load_state_dict(model.get_submodule(name).state_dict())
    loss = VelocityLoss(model, batches[:1], {name: linear})
    assert float(loss(0).detach()) < 1e-10
    with torch.no_grad():
        linear.weight *= 1.1
    loss(0).backward()
    assert float(linear.weight.grad.abs().max()) > 0
    assert all(p.grad is None for p in model.parameters())
