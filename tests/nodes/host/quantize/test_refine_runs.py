"""Forwards that wait before each block: they are ComfyUI's own, on each sample's own way, and gradients go through."""

import pytest
import torch
from families.models import load_dense
from families.network import Sizes
from families.registry import FAMILIES
from torch import nn

from svdquant_pack.nodes.host.model.dense_weights import DenseWeights
from svdquant_pack.nodes.host.quantize.plan_patcher import plan_patcher

CPU = torch.device("cpu")


@pytest.fixture
def patcher():
    return load_dense("flux2")


def open_runs(name, patcher):
    """Three calls, as a sampler of the family makes them."""
    family, sizes, calls = FAMILIES[name], Sizes(), []
    for seed, sigma in enumerate((0.9, 0.5, 0.1)):
        sizes.generator.manual_seed(seed)
        x, given = family.inputs(family.tiny_config, sizes)
        given = {key: value for key, value in given.items() if key != "transformer_options"}
        calls.append({"x": x, "t": sizes.number(sigma), **given})
    found = plan_patcher(patcher)
    return found, found.runs_of(patcher.model, calls, CPU)(dict(DenseWeights(patcher)))


def walk(runs, linears_of=lambda block: {}):
    """Block -> what was aimed at and what came out, of each sample."""
    seen = {}
    while (block := runs.advance()) is not None:
        run, linears = runs.here(), linears_of(block)
        with torch.no_grad():
            outputs = [run.output(i, linears) for i in range(run.samples)]
        seen[block] = [run.target(i) for i in range(run.samples)], outputs
        runs.leave(linears)
    runs.close()
    return seen


@pytest.mark.parametrize("name", ["flux2", "zimage", "ltx23", "wan_t2v", "minimax_h3"])
def test_every_block_runs_once_and_the_same_without_other_layers(name):
    found, runs = open_runs(name, load_dense(name))
    seen = walk(runs)
    assert set(seen) >= {layer.block for layer in found.plan.quantized}
    for targets, outputs in seen.values():
        for target, output in zip(targets, outputs, strict=True):
            assert all(torch.equal(t, o) for t, o in zip(target, output, strict=True))
    first = next(iter(seen.values()))[0]
    assert len(first) == 3 and not torch.equal(first[0][0], first[1][0])


def test_what_a_block_is_left_with_is_what_the_next_one_sees(patcher):
    """A Linear of zeros in the first block changes its output alone, and what all later ones are given."""
    _, runs = open_runs("flux2", patcher)
    plain = walk(runs)
    found, runs = open_runs("flux2", patcher)
    blocks = list(plain)
    layer = next(x for x in found.plan.quantized if x.block == blocks[0] and not x.is_modulation)

    class Zeros(nn.Module):
        def forward(self, x):
            return x.new_zeros(*x.shape[:-1], layer.out_features)

    changed = walk(runs, lambda block: {layer.name: Zeros()} if block == blocks[0] else {})
    for block in blocks:
        (targets, outputs), before = changed[block], plain[block][0]
        assert torch.equal(targets[0][0], before[0][0]) == (block == blocks[0])
        assert torch.equal(targets[0][0], outputs[0][0]) == (block != blocks[0])


def test_gradients_reach_a_layer_and_nothing_else_changes(patcher):
    found, runs = open_runs("flux2", patcher)
    block = runs.advance()
    run = runs.here()
    layers = [x for x in found.plan.quantized if x.block == block and not x.is_modulation]
    weights = DenseWeights(patcher)
    linears = {}
    with torch.inference_mode(False), torch.enable_grad():
        for layer in layers:
            linears[layer.name] = nn.Linear(layer.in_features, layer.out_features)
            linears[layer.name].weight.data.copy_(weights[f"{layer.name}.weight"])
        for _ in range(2):  # what the first run was given is still there for the second
            with run.gradients():
                outputs = run.output(0, linears)
                loss = sum((o - t).square().sum() for o, t in zip(outputs, run.target(0), strict=True))
                loss.backward()
    runs.close()
    assert all(float(linear.weight.grad.abs().max()) > 0 for linear in linears.values())
    assert all(p.grad is None for p in patcher.model.diffusion_model.parameters())


def test_an_error_of_the_model_comes_back_and_ends_all_forwards(patcher, monkeypatch):
    _, runs = open_runs("flux2", patcher)
    runs.advance()
    runs.leave({})
    monkeypatch.setattr(runs, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("no more")))
    with pytest.raises(RuntimeError, match="no more"):
        runs.advance()
    runs.close()
    assert not any(way._thread.is_alive() for way in runs.ways)
