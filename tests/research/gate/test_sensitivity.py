"""What is spent on which layer: within the budget, on those that matter; errors of single layers are measured."""

import pytest
import torch

from svdquant_pack.research.evaluate.recorded_inputs import record
from svdquant_pack.research.gate import gate_run, sensitivity
from svdquant_pack.research.gate.gate_run import GateRun, Recordings

CPU = torch.device("cpu")
LAYERS = ("double_blocks.0.img_attn.qkv", "single_blocks.2.linear2")


def test_spending_keeps_to_the_budget():
    errors, sizes = {"a": 1.0, "b": 4.0, "c": 0.1, "d": 0.5}, {"a": 10, "b": 100, "c": 1, "d": 10}
    assert sensitivity.spend(errors, sizes, 12) == {"a", "c"}  # a and c cost least for what they bring
    assert sensitivity.spend(errors, sizes, 21) == {"a", "c", "d"}
    assert sensitivity.spend(errors, sizes, 0) == set()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recordings = Recordings(tmp_path_factory.mktemp("recordings"), {"prompts": record}, 1, CPU)
    recordings.make("prompts", 0)
    return GateRun("w4a4", 0, recordings)


@pytest.fixture
def few(monkeypatch):
    """Two layers, one caption, one step: the arithmetic is the same."""
    linears = gate_run.source_linears
    monkeypatch.setattr(gate_run, "source_linears", lambda source: [x for x in linears(source) if x[0] in LAYERS])
    monkeypatch.setattr(sensitivity, "PROBES", 1)
    monkeypatch.setattr(sensitivity, "STEPS", 1)


def test_eight_bits_go_to_the_layer_that_hurts_more(run, few):
    four = sensitivity._plain_layers(run, 4)
    errors = sensitivity.measure_layers(run, four)
    assert errors.keys() == set(LAYERS) and min(errors.values()) > 0
    eight = sensitivity.measure_layers(run, sensitivity._plain_layers(run, 8))
    assert all(eight[n] < 0.1 * errors[n] for n in LAYERS)
    sizes = {n: run.source.weights[f"{n}.weight"].numel() for n in LAYERS}
    mixed = sensitivity.mixed_bits(run, bits=4 + 4 * max(sizes.values()) / sum(sizes.values()))
    chosen = sensitivity.spend(errors, sizes, max(sizes.values()))
    for name in LAYERS:
        levels = mixed[name].parts[0].values[0].unique().numel()
        assert (levels > 15) == (name in chosen)
