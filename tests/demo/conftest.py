"""A stand-in for the host: it answers the demo's prompts at once, with pictures that depend on what the graph says."""

import asyncio
import importlib.util
import io
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from svdquant_pack.demo.install import NODE_PACK, install_nodes
from svdquant_pack.demo.verdict import Verdict

SAVE_NODES = {"SaveLatent": "latents", "SaveImage": "images"}


class FakeServer:
    """Draws 64-pixel pictures: far apart for another caption, seed or LoRA, close together for another precision.

    Args:
        wrong: class of a node whose presence spoils the picture a little, as a bug would.
    """

    def __init__(self, host: Path, base: Path, wrong: str = ""):
        self.base, self.wrong = Path(base), wrong
        self.graphs: list[dict] = []
        self.precisions: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.nodes = {"SVDQuantModelLoader", "SVDQuantLoraLoader", "SVDQuantQuantizeModel", "SVDQuantExportModel"}
        self.nodes |= {"DemoSceneConditioning", "DemoSeededConditioning", "DemoNaiveLoader"}
        self.is_running = False

    def start(self):
        self.is_running = True

    def stop(self):
        self.is_running = False

    def object_info(self) -> dict:
        return {node: {} for node in self.nodes}

    def import_failures(self) -> list[str]:
        return ["Cannot import ComfyUI-SVDQuant: a reason"]

    def request(self, path: str) -> bytes:
        assert path == "/system_stats"
        return json.dumps({"system": {"comfyui_version": "0"}, "devices": [{"name": "cpu"}]}).encode()

    def view(self, place: dict) -> bytes:
        return self.files[place["filename"]]

    def prompt(self, graph: dict) -> dict:
        self.graphs.append(graph)
        node = {name: value["inputs"] for name, value in graph.items()}
        kinds = {value["class_type"]: name for name, value in graph.items()}
        path = ""
        if "SVDQuantQuantizeModel" in kinds:
            settings = node[kinds["SVDQuantQuantizeModel"]]
            path = self._write(f"svdq-{settings['precision']}-{settings['filename_prefix']}", settings["precision"])
            how = settings["precision"] + settings["activations"]
        elif "SVDQuantModelLoader" in kinds:
            settings = node[kinds["SVDQuantModelLoader"]]
            precision = self.precisions[settings["model_name"]]
            how = precision + settings["compute"]
            if "SVDQuantExportModel" in kinds:
                path = self._write(node["export"]["filename_prefix"], precision)
        elif "DemoNaiveLoader" in kinds:
            how = f"naive {node[kinds['DemoNaiveLoader']]['bits']}"
        else:
            how = ""
        latent = self._latent(node, how, kinds) if "sampler" in node else None
        outputs = {}
        for name, value in graph.items():
            if value["class_type"] in SAVE_NODES:
                outputs[name] = {SAVE_NODES[value["class_type"]]: [self._save(value["class_type"], latent)]}
            elif value["class_type"] == "PreviewAny":
                outputs[name] = {"text": [path if name == "path" else f"{name} of a model"]}
        start, end = {"prompt_id": "1", "timestamp": 1000}, {"prompt_id": "1", "timestamp": 3500}
        return {"outputs": outputs, "status": {"messages": [["execution_start", start], ["execution_success", end]]}}

    def _latent(self, node: dict, how: str, kinds: dict) -> torch.Tensor:
        scene = (node.get("caption"), node["sampler"]["seed"], "lora" in node)
        latent = _noise(scene)
        if how:
            latent += (0.3 if how.startswith("naive") else 0.05) * _noise(how)
        if self.wrong in kinds:
            latent[0, 0, 0, 0] += 1e-3
        return latent

    def _write(self, stem: str, precision: str) -> str:
        path = self.base / "output" / "diffusion_models" / f"{stem}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        self.precisions[path.name] = precision
        return str(path)

    def _save(self, kind: str, latent: torch.Tensor) -> dict:
        name = f"{len(self.files)}"
        if kind == "SaveLatent":
            self.files[name] = save({"latent_tensor": latent, "latent_format_version_0": torch.tensor([])})
        else:
            pixels = (latent[0, :3].movedim(0, -1) * 40 + 128).clamp(0, 255).byte().numpy()
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
            self.files[name] = buffer.getvalue()
        return {"filename": name, "subfolder": "demo", "type": "output"}


def _noise(about: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(repr(about).encode()))
    return torch.randn(1, 4, 64, 64, generator=generator)


@pytest.fixture
def fake_server(tmp_path):
    """Make a FakeServer: fake_server(wrong="")."""
    return lambda wrong="": FakeServer(tmp_path, tmp_path / "base", wrong)


@pytest.fixture
def lenient():
    """A reader that finds every picture right: those of the stand-in show nothing."""
    return lambda image, caption: Verdict()


@pytest.fixture(scope="session")
def demo_nodes(tmp_path_factory, host) -> dict:
    """The demo's nodes by id, loaded from an installed copy as the host loads a pack."""
    base = tmp_path_factory.mktemp("demo")
    install_nodes(base)
    file = base / "custom_nodes" / NODE_PACK / "__init__.py"
    spec = importlib.util.spec_from_file_location(NODE_PACK, file, submodule_search_locations=[str(file.parent)])
    module = sys.modules[NODE_PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def listed():
        return await (await module.comfy_entrypoint()).get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(listed())}
