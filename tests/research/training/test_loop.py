"""A training can be stopped at any step and gives the same weights as one that was not."""

import time

import pytest
import torch

from svdquant_pack.research.training import pace as pace_module
from svdquant_pack.research.training.loop import Loop, step_generator
from svdquant_pack.research.training.options import Options
from svdquant_pack.research.training.pace import Pace

CPU = torch.device("cpu")


def train(folder, steps, stop_at=None, **more):
    """Fit a small layer to noise; return its weight."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3)
    adam = torch.optim.AdamW(layer.parameters(), 0.1)
    loop = Loop(Options(folder, folder, steps=steps, **more), CPU, "layer", {"layer": layer, "adam": adam})
    for step, progress in loop.steps():
        assert progress == step / steps
        loss = layer(torch.randn(4, 3, generator=step_generator(CPU, 1, step))).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step == stop_at:
            loop.step += 1
            loop.save()
            break
    return layer.weight.detach()


def test_a_stopped_training_goes_on_as_if_nothing_had_been(tmp_path):
    whole = train(tmp_path / "whole", 8)
    half = train(tmp_path / "halves", 8, stop_at=3)
    assert not torch.equal(half, whole)
    assert torch.equal(train(tmp_path / "halves", 8), whole)


def test_a_finished_training_ends_at_once(tmp_path):
    weight = train(tmp_path, 4)
    assert torch.equal(train(tmp_path, 4), weight)


def test_a_deadline_ends_a_training_by_steps_with_a_checkpoint(tmp_path):
    with pytest.raises(SystemExit, match="run it again to go on"):
        train(tmp_path, 100, deadline=time.time() - 1)
    assert torch.load(tmp_path / "layer.checkpoint", weights_only=True)["step"] == 20


def test_random_numbers_depend_on_the_step_alone():
    first, again, other = (torch.randn(3, generator=step_generator(CPU, 1, step)) for step in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pace_by_the_clock_ends_in_time(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(pace_module.time, "monotonic", lambda: clock[0])
    pace = Pace(CPU, seconds=10.0)
    step, seen = 0, []
    while (progress := pace.progress(step)) < 1:
        seen.append(progress)
        clock[0] += 0.02
        step += 1
    assert seen == sorted(seen)
    assert 9.9 < clock[0] - 100 < 10.6
    assert 480 < step < 540


def test_pace_counts_what_earlier_runs_took(monkeypatch):
    monkeypatch.setattr(pace_module.time, "monotonic", lambda: 100.0)
    assert Pace(CPU, seconds=10.0, spent=4.0).progress(7) == pytest.approx(0.4)
