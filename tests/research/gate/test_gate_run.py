"""Layers that a recipe makes are the pack's own where it does the same; replicates differ; layer errors are honest."""

import pytest
import torch

from svdquant_pack.research.evaluate.linears import DenseLinear, SimulatedLinear
from svdquant_pack.research.evaluate.recorded_inputs import record, record_noise
from svdquant_pack.research.gate import recipes
from svdquant_pack.research.gate.gate_run import GateRun, Recordings, median_layer_error, solve_layers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    found = Recordings(tmp_path_factory.mktemp("recordings"), recipes.RECORDERS, 1, CPU)
    for replicate in (0, 1):
        found.make("prompts", replicate)
    found.make("noise", 0)
    return found


def test_replicates_see_other_captions_and_none_twice(recordings):
    first, second = (recordings.read("prompts", r).inputs["double_blocks.0.img_mlp.2"] for r in (0, 1))
    assert not torch.equal(first.tokens, second.tokens) and first.count == second.count
    again = record(1, CPU, 1).inputs["double_blocks.0.img_mlp.2"]
    assert torch.equal(again.tokens, second.tokens) and torch.equal(again.mean_square, second.mean_square)


def test_noise_is_near_what_is_recorded(recordings):
    noise, prompts = recordings.read("noise", 0), recordings.read("prompts", 0)
    assert noise.inputs.keys() == prompts.inputs.keys()
    name = "single_blocks.1.linear1"
    ratio = noise.inputs[name].mean_square / prompts.inputs[name].mean_square
    assert 0.3 < float(ratio.median()) < 3
    assert not torch.equal(record_noise(CPU, 1).inputs[name].tokens, noise.inputs[name].tokens)


def test_a_solver_s_layers_are_whole(recordings):
    run = GateRun("w4a4", 0, recordings)
    layers = recipes.RECIPES["nearest"].make(run)
    assert isinstance(layers["double_blocks.0.img_mod.lin"], DenseLinear)
    linear1 = layers["single_blocks.0.linear1"]
    assert isinstance(linear1, SimulatedLinear)
    assert [part.rows for part in linear1.parts] == [(0, 768), (768, 1792)]
    source = run.source
    unseen = {n: s.tokens for n, s in recordings.read("prompts", 1).inputs.items()}
    nearest = median_layer_error(layers, unseen, source)
    assert 0.02 < nearest < 0.4

    eight = GateRun("w8a8", 0, recordings)
    assert median_layer_error(recipes.RECIPES["nearest"].make(eight), unseen, source) < 0.3 * nearest


def test_ranks_by_layer(recordings):
    run = GateRun("w4a4", 0, recordings)
    ranks = []

    def solve(name, plans, problems):
        ranks.extend((name, problem.rank) for problem in problems)
        return []

    solve_layers(run, solve, rank=lambda name: 64 if "linear2" in name else 16)
    assert {rank for name, rank in ranks if "linear2" in name} == {64}
    assert {rank for name, rank in ranks if "linear2" not in name} == {16}
