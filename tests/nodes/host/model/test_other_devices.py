"""Copies of a model for another GPU, as the host's multi-GPU nodes make them.

The second GPU is "cpu:1" here: a device of its own for the host's lists and for our choice of modes, the same memory.
"""

import comfy.model_management
import comfy.multigpu
import pytest
import torch
from feature_graphs import Graphs, prompt
from lora_files import diffusers_lora
from sampling import relative_error, rounding

from svdquant_pack.nodes.host.model.build import load_model
from svdquant_pack.nodes.host.model.patcher import SVDQuantPatcher, SVDQuantPatcherDynamic
from svdquant_pack.svdq_core import runtime

HERE, OTHER = torch.device("cpu"), torch.device("cpu", 1)
MODES = {HERE: "w4a4", OTHER: "w4a8"}


@pytest.fixture
def two_devices(monkeypatch):
    """A machine whose GPUs are of two generations."""
    if not comfy.model_management.cpu_mode():
        pytest.skip("fakes a second device of the CPU")
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: [HERE, OTHER])
    monkeypatch.setattr(runtime, "choose_compute", lambda scheme, device: (MODES[device], "of this test"))
    monkeypatch.setattr(runtime, "why_no_triton", lambda device: None if device == OTHER else "none here")


def modes(model) -> set[str]:
    return {module.compute for module in model.svdquant_layers().values()}


def is_prepared(model) -> bool:
    """Whether the layers carry what kernels want beside the weights."""
    return any("channel_scales" in p.tensors for m in model.svdquant_layers().values() for p in m.layer().parts)


def other_of(model):
    (other,) = model.get_additional_models_with_key("multigpu")
    return other


@pytest.mark.parametrize(("choice", "expected"), [("auto", "w4a8"), ("w4a16", "w4a16")])
def test_a_copy_is_read_for_the_gpu_that_runs_it(path, two_devices, choice, expected):
    model = load_model(str(path), choice)
    copies = comfy.multigpu.create_multigpu_deepclones(model, 2)
    other = other_of(copies)
    assert modes(copies) == {"w4a4" if choice == "auto" else choice} and not is_prepared(copies)
    assert modes(other) == {expected} and is_prepared(other) == (expected == "w4a8")
    assert other.load_device == OTHER and other.model is not model.model
    assert type(other) in (SVDQuantPatcher, SVDQuantPatcherDynamic)


def test_the_original_makes_copies_for_its_own_device_afterwards(path, two_devices):
    model = load_model(str(path), "auto")
    other = model.deepclone_multigpu(new_load_device=OTHER)
    make, given = model.cached_patcher_init
    assert modes(make(*given, disable_dynamic=True)) == {"w4a4"}
    make, given = other.cached_patcher_init
    assert modes(make(*given, disable_dynamic=True)) == {"w4a8"}
    assert modes(other.deepclone_multigpu(new_load_device=HERE)) == {"w4a4"}


def test_both_draw_and_carry_the_lora(host, path, two_devices, add, monkeypatch):
    """cond here, uncond there: the picture is that of one device; a LoRA put on afterwards reaches both."""
    g = Graphs(host)
    monkeypatch.setattr(runtime, "choose_compute", lambda scheme, device: ("w4a16", "of this test"))
    monkeypatch.setattr(comfy.model_management, "set_torch_device", lambda device: None)
    model = load_model(str(path), "auto")
    split = comfy.multigpu.create_multigpu_deepclones(model, 2)
    calls = []
    for patcher in (split, other_of(split)):
        layer = next(iter(patcher.svdquant_layers().values()))
        layer.register_forward_pre_hook(lambda *_, device=patcher.load_device: calls.append(device))
    lora = diffusers_lora(5)
    for one, two in ((model, split), (add(model, lora, 0.8), add(split, lora, 0.8))):
        expected = g.sample(one, prompt(1), prompt(2), cfg=3.0)
        calls.clear()
        found = g.sample(two, prompt(1), prompt(2), cfg=3.0)
        assert set(calls) == {HERE, OTHER}
        assert relative_error(found, expected) < rounding(2e-6)
    assert relative_error(g.sample(model, prompt(1), prompt(2), cfg=3.0), expected) > 1e-3
