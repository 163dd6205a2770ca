"""Steps as graphs in the real ComfyUI: the same pictures, and no graph where Python decides something in each step.

Without a GPU a graph is played: what it captured is computed again from the places it was captured with, and written to
the place of its result. What a real one would miss, a played one misses as well: anything that is not in those places.
"""

import copy
from typing import ClassVar

import comfy.model_management
import comfy.patcher_extension
import comfy_extras.nodes_model_advanced
import pytest
import torch
from host_models import put_lora, put_tiny
from safetensors.torch import load_file
from sampling import flux_conditioning, sample_flux

from svdquant_pack.nodes.host.attention import OVERRIDE, attend
from svdquant_pack.nodes.host.graphs import captured, forward, rules
from svdquant_pack.nodes.host.graphs.rules import SWITCH
from svdquant_pack.nodes.host.model.build import load_model

STEPS = 6
EAGER = forward.WARM + 1  # calls of a form that run as usual; the last of them is captured, too


class PlayedGraph:
    """Stands for CudaGraph."""

    made: ClassVar[list] = []

    def __init__(self, device):
        self.replays, self.wrong = 0, 0.0
        PlayedGraph.made.append(self)

    def capture(self, compute):
        self.compute = compute
        self.out = torch.full_like(compute(), float("nan"))
        return self.out

    def replay(self):
        self.replays += 1
        self.out.copy_(self.compute() + self.wrong)


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(PlayedGraph, "made", [])
    monkeypatch.setattr(forward, "CudaGraph", PlayedGraph)
    monkeypatch.setattr(rules, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setenv(SWITCH, "1")
    return PlayedGraph.made


@pytest.fixture
def fresh(path):
    """A MODEL of its own: graphs belong to the model that clones share."""
    return load_model(str(path), "w4a16")


def sample(model, monkeypatch=None, **more):
    """A picture; without graphs if monkeypatch is given."""
    if monkeypatch is None:
        return sample_flux(model, steps=STEPS, **more)
    with monkeypatch.context() as changed:
        changed.setenv(SWITCH, "0")
        return sample_flux(model, steps=STEPS, **more)


def replays(made) -> int:
    """Steps that ran as graphs; the one replay that checks a graph is none."""
    return sum(graph.replays - 1 for graph in made)


def test_the_same_picture_and_most_steps_replayed(fresh, played, monkeypatch):
    expected = sample(fresh, monkeypatch)
    assert not played
    assert torch.equal(sample(fresh), expected)
    assert len(played) == 1 and replays(played) == STEPS - EAGER
    assert torch.equal(sample(fresh), expected)  # the next picture needs no step as usual
    assert len(played) == 1 and replays(played) == 2 * STEPS - EAGER


def test_another_prompt_guidance_and_sampler_go_through_the_same_graph(fresh, played, monkeypatch):
    g = torch.Generator().manual_seed(9)
    pooled = torch.randn(1, 64, generator=g)
    other = [[torch.randn(1, 16, 128, generator=g), {"pooled_output": pooled, "guidance": 7.0}]]
    expected = sample(fresh, monkeypatch, conditioning=other)
    first = sample(fresh)
    assert torch.equal(sample(fresh, conditioning=other), expected) and not torch.equal(first, expected)
    assert len(played) == 1 and replays(played) == 2 * STEPS - EAGER
    assert torch.equal(sample_flux(fresh, steps=9), sample_flux(fresh, steps=9)) and len(played) == 1


def test_another_size_is_another_graph_and_few_are_kept(fresh, played):
    for pixels in (64, 96, 128):
        sample(fresh, pixels=pixels)
    assert len(played) == 3 and fresh.model.svdquant_graphs.count() == forward.MOST


def test_a_lora_is_in_the_picture_at_once(host, fresh, played, monkeypatch, add):
    lora = load_file(host.model_folder("loras") / put_lora(host.model_folder("loras")))
    sample(fresh)
    strong = add(fresh, lora, 1.0)
    expected = sample(add(fresh, lora, 1.0), monkeypatch)
    assert torch.equal(sample(strong), expected)
    weak = sample(add(fresh, lora, 0.5), monkeypatch)
    assert torch.equal(sample(add(fresh, lora, 0.5)), weak) and not torch.equal(weak, expected)
    plain = sample(fresh, monkeypatch)
    assert torch.equal(sample(fresh), plain)
    assert fresh.model.svdquant_graphs.count() == 1


def _wrapper(kind):
    def change(m):
        def theirs(executor, *args, **kwargs):
            return executor(*args, **kwargs)

        m.add_wrapper_with_key(kind, "theirs", theirs)

    return change


def _options(**more):
    return lambda m: m.model_options["transformer_options"].update(more)


def _replaced_forward(m):
    flux = m.model.diffusion_model
    flux.forward_orig = flux.forward_orig  # TeaCache and others put a function of theirs on the instance


WRAPPERS = comfy.patcher_extension.WrappersMP
CHANGES = {
    "a wrapper": _wrapper(WRAPPERS.APPLY_MODEL),
    "a wrapper inside": _wrapper(WRAPPERS.DIFFUSION_MODEL),
    "an attention patch": lambda m: m.set_model_attn1_patch(lambda q, k, v, *a, **o: {"q": q, "k": k, "v": v}),
    "a block": lambda m: m.set_model_patch_replace(lambda a, o: o["original_block"](a), "dit", "single_block", 0),
    "their attention": _options(**{OVERRIDE: lambda f, *args, **kwargs: f(*args, **kwargs)}),
    "an option": _options(cache_dit=1),
    "an injection": lambda m: m.set_injections(
        "theirs", [comfy.patcher_extension.PatcherInjection(lambda p: None, lambda p: None)]
    ),
    "a forward": _replaced_forward,
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_graph_with_what_may_keep_count_of_steps(fresh, played, change):
    copied = fresh.clone()
    CHANGES[change](copied)
    sample(copied)
    assert not played


def test_nor_in_the_next_picture_after_there_was_one(fresh, played, monkeypatch):
    sample(fresh)
    copied, seen = fresh.clone(), []
    copied.set_model_attn1_patch(lambda q, k, v, *a, **o: seen.append(1) or {"q": q, "k": k, "v": v})
    before = replays(played)
    sample(copied)
    assert seen and replays(played) == before


def test_our_attention_is_no_obstacle(fresh, played):
    fresh.model_options["transformer_options"][OVERRIDE] = attend
    sample(fresh)
    assert replays(played) == STEPS - EAGER


def test_a_graph_that_computes_something_else_is_not_used(fresh, played, monkeypatch):
    expected = sample(fresh, monkeypatch)
    monkeypatch.setattr(PlayedGraph, "capture", lambda self, compute: _wrong(self, compute))
    assert torch.equal(sample(fresh), expected)
    assert len(played) == 1 and replays(played) == 0 and fresh.model.svdquant_graphs.count() == 0


def _wrong(graph, compute):
    graph.compute, graph.wrong, graph.out = compute, 0.5, torch.empty_like(compute())
    return graph.out


def test_what_cannot_be_captured_runs_as_usual(fresh, played, monkeypatch):
    expected = sample(fresh, monkeypatch)

    def fail(self, compute):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(PlayedGraph, "capture", fail)
    assert torch.equal(sample(fresh), expected) and len(played) == 1


def test_a_kernel_given_up_during_a_capture_spoils_it(fresh, played, monkeypatch):
    counts = iter(range(100))
    monkeypatch.setattr(captured, "kernels_given_up", lambda: next(counts))
    sample(fresh)
    assert replays(played) == -1 and fresh.model.svdquant_graphs.count() == 0


def test_no_graph_where_the_gpu_does_not_wait(fresh, played, monkeypatch):
    monkeypatch.setattr(forward._Form, "gpu_waits", lambda self: False)
    sample(fresh)
    assert not played


def test_weights_that_moved_are_noticed(fresh, played, monkeypatch):
    expected = sample(fresh, monkeypatch)
    sample(fresh)
    linear = fresh.model.diffusion_model.double_blocks[0].img_attn.qkv
    linear.weight = torch.nn.Parameter(linear.weight.data.clone(), requires_grad=False)
    assert torch.equal(sample(fresh), expected)
    assert len(played) == 2


def test_weights_that_move_all_the_time_end_it(fresh, played):
    linear = fresh.model.diffusion_model.double_blocks[0].img_attn.qkv
    for _ in range(forward.MOST_LOST + 3):
        sample(fresh)
        linear.weight = torch.nn.Parameter(linear.weight.data.clone(), requires_grad=False)
    assert len(played) == forward.MOST_LOST + 1


def test_other_sampling_is_noticed(fresh, played, monkeypatch):
    node = comfy_extras.nodes_model_advanced.ModelSamplingFlux()
    sample(fresh)
    (shifted,) = node.patch(fresh, max_shift=2.0, base_shift=0.3, width=128, height=128)
    expected = sample(shifted, monkeypatch)
    assert torch.equal(sample(shifted), expected) and not torch.equal(expected, sample(fresh))


def test_unloading_frees_graphs(host, fresh, played):
    sample(fresh)
    assert fresh.model.svdquant_graphs.count() == 1
    host.unload()
    assert fresh.model.svdquant_graphs.count() == 0


def test_clones_share_graphs_and_copies_do_not(fresh, played):
    sample(fresh)
    assert fresh.clone().model.svdquant_graphs is fresh.model.svdquant_graphs
    assert copy.deepcopy(fresh.model.svdquant_graphs).count() == 0


def test_the_switch(fresh, played, monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    sample(fresh)
    assert not played


def test_large_images_are_not_bound_by_launches(fresh, played, monkeypatch):
    monkeypatch.setattr(rules, "LARGEST_LATENT", 16 * 16 - 1)
    sample(fresh)  # 128 pixels
    assert not played


def test_a_wrapper_that_another_model_was_given_does_nothing(fresh, dense, played):
    other = dense.clone()
    other.add_wrapper_with_key(WRAPPERS.APPLY_MODEL, rules.KEY, forward.run_graphed)
    assert torch.equal(sample(other), sample(dense)) and not played


@pytest.mark.gpu
def test_on_a_gpu(host, monkeypatch):
    folder = host.model_folder("diffusion_models")
    model = load_model(str(folder / put_tiny(folder)), "auto")
    expected = sample(model, monkeypatch)
    monkeypatch.setenv(SWITCH, "1")
    first, second = sample(model), sample(model)
    assert model.model.svdquant_graphs.count() == 1, "the log says why not"
    for picture in (first, second):
        # the same kernels, and cuBLAS with another workspace: bits may differ where it splits sums otherwise
        assert float((picture - expected).norm() / expected.norm()) < 1e-2
    other = flux_conditioning()
    other[0][0] = other[0][0].flip(1)
    assert not torch.equal(sample(model, conditioning=other), second)
    comfy.model_management.unload_all_models()
    assert model.model.svdquant_graphs.count() == 0
