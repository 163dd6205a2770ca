"""Workflows as files, and what comes back from a server."""

import json

import pytest

from svdquant_pack.demo.client import WORKFLOWS, Client, read_workflow

EXTRA_NODES = {"PreviewAny", "FluxGuidance", "EmptySD3LatentImage"}  # the host loads these only for a server
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_node(name):
    graph = read_workflow(name, {})
    for node in graph.values():
        for value in node["inputs"].values():
            if isinstance(value, list):
                assert value[0] in graph


def test_values_are_set():
    graph = read_workflow("flux_svdquant", {"sampler.seed": 7, "model.compute": "w4a4"})
    assert graph["sampler"]["inputs"]["seed"] == 7
    assert graph["model"]["inputs"]["compute"] == "w4a4"
    assert read_workflow("flux_svdquant", {})["sampler"]["inputs"]["seed"] != 7


@pytest.mark.parametrize("target", ["sampler.sead", "sample.seed", "seed"])
def test_an_unknown_input_is_refused(target):
    with pytest.raises(KeyError, match=target):
        read_workflow("flux_bf16", {target: 1})


def test_outcome_holds_what_the_server_sent(fake_server):
    outcome = Client(fake_server()).run("flux_quantize", {"model.precision": "nvfp4"})
    assert outcome.latent.shape == (1, 4, 64, 64)
    assert outcome.image.shape == (64, 64, 3)
    assert outcome.seconds == 2.5
    assert outcome.texts["path"].endswith("svdq-nvfp4-demo_flux.safetensors")
    assert outcome.texts["report"] == "report of a model"


def test_a_workflow_without_a_picture(fake_server):
    server = fake_server()
    quantized = Client(server).run("flux_quantize").texts["path"]
    outcome = Client(server).run("flux_export", {"model.model_name": quantized.rpartition("/")[2]})
    assert outcome.latent is None
    assert outcome.image is None
    assert set(outcome.texts) == {"path"}


@pytest.mark.host
@pytest.mark.parametrize("name", NAMES)
def test_the_host_knows_every_node_and_input(name, host, demo_nodes):
    known = demo_nodes | host.nodes.NODE_CLASS_MAPPINGS
    for node in json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")).values():
        if node["class_type"] in EXTRA_NODES:
            continue
        inputs = known[node["class_type"]].INPUT_TYPES()
        assert inputs["required"].keys() <= node["inputs"].keys()
        assert node["inputs"].keys() <= inputs["required"].keys() | inputs.get("optional", {}).keys()
