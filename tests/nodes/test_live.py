"""What the user sees while a prompt runs: progress on the node, the layer's name, previews as for any model."""

import importlib.util

import pytest
from comfyui_server import ComfyUIServer
from comfyui_source import find_host
from host_models import put_dense, put_tiny
from page_socket import listen

from svdquant_pack import ROOT

STEPS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with the demo's caption node and the tiny models of the tests."""
    spec = importlib.util.spec_from_file_location("demo_install", ROOT / "demo" / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    base = tmp_path_factory.mktemp("live")
    install.install_nodes(base)
    (base / "models" / "diffusion_models").mkdir(parents=True, exist_ok=True)
    put_tiny(base / "models" / "diffusion_models")
    put_dense(base / "models" / "diffusion_models")
    with ComfyUIServer(find_host(), base, device="cpu") as running:
        yield running


LOADERS = {
    "svdquant": {
        "class_type": "SVDQuantModelLoader",
        "inputs": {"model_name": "svdq-int4-tiny.safetensors", "compute": "w4a16"},
    },
    "dense": {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "dense-int4-float32.safetensors", "weight_dtype": "default"},
    },
}


def sampling(loader, seed):
    scene = {"caption": "a large red circle on a plain blue background"}
    sampler = {"seed": seed, "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    wires = {
        "model": ["load", 0],
        "positive": ["caption", 0],
        "negative": ["caption", 0],
        "latent_image": ["latent", 0],
    }
    return {
        "load": LOADERS[loader],
        "caption": {"class_type": "DemoSceneConditioning", "inputs": scene},
        "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sample": {"class_type": "KSampler", "inputs": sampler | wires},
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sample", 0], "filename_prefix": "live"}},
    }


def test_steps_and_previews_come_as_for_a_dense_model(server):
    heard = {loader: listen(server, sampling(loader, 1), "latent2rgb") for loader in LOADERS}
    for loader, each in heard.items():
        assert each.ended["sample"] == "finished", loader
        assert [value for value, _ in each.progress["sample"]] == list(range(1, STEPS + 1)), loader
    ours, theirs = heard["svdquant"], heard["dense"]
    assert ours.progress["sample"] == theirs.progress["sample"]
    pictures = ours.previews["sample"]
    assert len(pictures) == len(theirs.previews["sample"]) == STEPS
    assert [picture.size for picture in pictures] == [picture.size for picture in theirs.previews["sample"]]
    assert len({picture.tobytes() for picture in pictures}) == STEPS, "the previews do not move on"
    assert ours.previews.keys() == {"sample"}


def test_without_the_setting_there_are_steps_and_no_previews(server):
    heard = listen(server, sampling("svdquant", 2))
    assert heard.progress["sample"][-1] == (STEPS, STEPS) and not heard.previews  # the host leaves quick steps out


def test_quantizing_counts_layers_and_names_them(server):
    inputs = {"model": ["load", 0], "precision": "int4", "activations": "w4a8", "rank": 16, "method": "fast"}
    inputs |= {"filename_prefix": "live", "overwrite": True, "seed": 0}
    graph = {
        "load": LOADERS["dense"],
        "quantize": {"class_type": "SVDQuantQuantizeModel", "inputs": inputs},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["quantize", 1]}},
    }
    heard = listen(server, graph)
    assert heard.ended["quantize"] == "finished"
    values, maxima = zip(*heard.progress["quantize"], strict=True)
    assert list(values) == sorted(values) and values[-1] == maxima[-1] > 10
    texts = heard.texts["quantize"]
    plan, *layers = texts
    assert "layers" in plan  # what will become of the model, before the first of them
    assert layers and all("blocks.0." in text and " of " in text for text in layers), texts


def test_exporting_counts_layers(server):
    inputs = {"model": ["load", 0], "format": "nunchaku", "filename_prefix": "live-export", "overwrite": True}
    graph = {"load": LOADERS["svdquant"], "export": {"class_type": "SVDQuantExportModel", "inputs": inputs}}
    heard = listen(server, graph)
    values, maxima = zip(*heard.progress["export"], strict=True)
    assert values[-1] == maxima[-1] > 10 and heard.ended["export"] == "finished"
