"""The pack as a client meets it: a real server, its node list, a prompt over HTTP, a picture, a wrong file."""

import importlib.util
import io

import pytest
from comfyui_server import ComfyUIError, ComfyUIServer
from comfyui_source import find_host
from host_models import put_dense, put_lora, put_tiny
from PIL import Image

from svdquant_pack import ROOT

NODES = (
    *("SVDQuantModelLoader", "SVDQuantLoraLoader", "SVDQuantExportModel", "SVDQuantQuantizeModel"),
    *("SVDQuantCalibrationStart", "SVDQuantCalibrationSave"),
)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A server with this pack, the demo's caption node and autoencoder, and the tiny models of the tests."""
    spec = importlib.util.spec_from_file_location("demo_install", ROOT / "demo" / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    base = tmp_path_factory.mktemp("comfyui")
    install.install_models(base)
    install.install_nodes(base)
    put_tiny(base / "models" / "diffusion_models")
    put_dense(base / "models" / "diffusion_models")
    put_lora(base / "models" / "loras")
    (base / "models" / "diffusion_models" / "wrong.safetensors").write_bytes(b"")
    with ComfyUIServer(find_host(), base, device="cpu") as server:
        yield server


def picture(model: list, extra: dict) -> dict:
    """A graph in API form from a MODEL output to a saved picture."""
    return extra | {
        "caption": {
            "class_type": "DemoSceneConditioning",
            "inputs": {"caption": "a large red circle on a plain blue background"},
        },
        "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": model,
                "positive": ["caption", 0],
                "negative": ["caption", 0],
                "latent_image": ["latent", 0],
                "seed": 1,
                "steps": 2,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "taef1"}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "test"}},
    }


def loader(name: str) -> dict:
    return {"class_type": "SVDQuantModelLoader", "inputs": {"model_name": name, "compute": "w4a8"}}


def png(client, entry) -> bytes:
    return client.view(entry["outputs"]["save"]["images"][0])


def test_the_pack_loads_from_a_dashed_folder(client):
    assert client.import_failures() == []
    info = client.object_info()
    for node in NODES:
        assert info[node]["python_module"].startswith("custom_nodes.ComfyUI-SVDQuant")
        assert info[node]["category"] == "SVDQuant" and info[node]["description"]
        for section in ("required", "optional"):
            for name, definition in info[node]["input"].get(section, {}).items():
                assert definition[1].get("tooltip"), f"{node}.{name} has no tooltip"


def test_a_picture_comes_out_and_a_lora_changes_it(client):
    extra = {"load": loader("svdq-int4-tiny.safetensors")}
    plain = png(client, client.prompt(picture(["load", 0], extra)))
    assert Image.open(io.BytesIO(plain)).size == (128, 128)
    extra["lora"] = {
        "class_type": "SVDQuantLoraLoader",
        "inputs": {"model": ["load", 0], "lora_name": "tiny-lora.safetensors", "strength": 2.0},
    }
    changed = png(client, client.prompt(picture(["lora", 0], extra)))
    assert Image.open(io.BytesIO(changed)).tobytes() != Image.open(io.BytesIO(plain)).tobytes()


def test_a_quantized_model_gives_the_picture_of_its_file(client):
    extra = {
        "dense": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": "dense-int4-float32.safetensors", "weight_dtype": "default"},
        },
        "quantize": {
            "class_type": "SVDQuantQuantizeModel",
            "inputs": {
                "model": ["dense", 0],
                "precision": "int4",
                "activations": "w4a8",
                "rank": 16,
                "method": "fast",
                "filename_prefix": "through-the-server",
                "overwrite": True,
                "seed": 0,
            },
        },
    }
    direct = png(client, client.prompt(picture(["quantize", 0], extra)))
    name = "svdq-int4_r16-through-the-server.safetensors"
    assert name in client.object_info()["SVDQuantModelLoader"]["input"]["required"]["model_name"][1]["options"]
    reloaded = png(client, client.prompt(picture(["load", 0], {"load": loader(name)})))
    assert Image.open(io.BytesIO(reloaded)).tobytes() == Image.open(io.BytesIO(direct)).tobytes()


def test_a_wrong_file_is_an_error_on_the_node_and_the_server_stays(client):
    with pytest.raises(ComfyUIError, match=r"wrong\.safetensors: the file is empty"):
        client.prompt(picture(["load", 0], {"load": loader("wrong.safetensors")}))
    assert client.prompt(picture(["load", 0], {"load": loader("svdq-int4-tiny.safetensors")}))["outputs"]["save"]
