"""What the quantizer would do to every family, found by tracing: as looked through by eye, and as files have it."""

import json
from pathlib import Path

import pytest
import torch
from families.registry import FAMILIES
from families.traces import facts_of, model_without_memory, published_trace, tiny_trace

from svdquant_pack.nodes.host.quantize.trace import trace_model
from svdquant_pack.svdq_core.errors import ArchitectureError
from svdquant_pack.svdq_core.models import ARCHITECTURES
from svdquant_pack.svdq_core.quantize.layout_plan import plan_layout, spare_idle_layers
from svdquant_pack.svdq_core.quantize.plan_rules import plan_model
from svdquant_pack.svdq_core.quantize.spec import QuantSpec

PLANS = json.loads((Path(__file__).parent / "plans.json").read_text(encoding="utf-8"))
# family here -> the description that its published files have
DESCRIBED = {
    "ernie": "ernie",
    "flux1": "flux",
    "flux2": "flux2",
    "chroma": "chroma",
    "zimage": "zimage",
    "krea2": "krea2",
    "qwen_image": "qwen_image",
    "minimax_h3": "minimax_h3",
    "sdxl": "sdxl",
    "pixart": "pixart",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plan_is_the_expected_one(name, host):
    assert facts_of(plan_model(published_trace(name))) == PLANS[name]


def test_every_family_has_an_expected_plan():
    assert PLANS.keys() == FAMILIES.keys()
    assert set(DESCRIBED.values()) == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", DESCRIBED)
def test_tracing_chooses_what_published_files_hold(name, host):
    traced = published_trace(name)
    shapes = {linear.name: (linear.out_features, linear.in_features) for linear in traced}
    layout = spare_idle_layers(plan_layout(ARCHITECTURES[DESCRIBED[name]], shapes, traced.parameters), traced)
    found = plan_model(traced)

    def main(plan):
        return {layer.name for layer in plan.quantized if not layer.is_modulation}

    assert main(found) == main(layout)
    for layer in layout.quantized:  # FLUX.1's linear1 is two parts in files, whose inputs are the same
        ours = found[layer.name].parts
        if ours is not None and layer.parts is not None and not layer.is_modulation:
            behind = {part.columns for part in layer.parts.parts if part.after_gelu}
            assert behind <= {part.columns for part in ours.parts if part.after_gelu}, layer.name


def test_shares_of_the_parameters(host):
    """As counted by hand of the published models."""
    for name, w4a4, w4a16 in (("flux1", 0.723, 0.271), ("qwen_image", 0.665, 0.333), ("krea2", 0.948, 0.0)):
        plan = plan_model(published_trace(name))
        assert plan.share(False) == pytest.approx(w4a4, abs=1e-3)
        assert plan.share(True) == pytest.approx(w4a16, abs=1e-3)
    flux = plan_model(published_trace("flux1"))
    assert 6.2 < flux.nbytes(QuantSpec()) / 2**30 < 6.5  # nunchaku's file of rank 32 has 6.3 GiB
    lines = flux.describe(QuantSpec())
    assert "228 layers in int4, 72.3% of 11.90 billion parameters" in lines[0] and "76 modulation" in lines[1]


def test_a_model_of_published_size_is_traced_without_memory(host):
    """As the node does, on a model that weighs 17 GB; the facts are those of the tiny one."""
    family = FAMILIES["zimage"]
    tiny = tiny_trace("zimage")[0]
    model = model_without_memory("zimage")
    large = type(model)(model.model_config, model.model_type)
    large.diffusion_model = family.build(family.published)
    traced, request = trace_model(large)
    assert request.widths["text"] == 2560
    assert facts_of(plan_model(traced)) == PLANS["zimage"]
    assert len(traced.blocks) == 34 and len(tiny.blocks) == 6


def test_a_model_without_repeated_blocks_is_refused(host):
    model = model_without_memory("flux1")
    model.diffusion_model = torch.nn.Sequential(torch.nn.Linear(8, 8, device="meta"))
    with pytest.raises(ArchitectureError, match="no repeated blocks"):
        trace_model(model)
