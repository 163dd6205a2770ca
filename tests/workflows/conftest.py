"""A server that has every file that the workflows name, as an empty file: lists and checks work, loading does not."""

import importlib.util

import pytest
from comfyui_server import ComfyUIServer
from comfyui_source import find_host
from pack import ROOT
from PIL import Image
from workflow_files import write


def put_files(base):
    """Make BASE look like the ComfyUI of a user who has everything."""
    for workflow in write.workflows():
        for file in workflow.files:
            path = base / "models" / file.folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (base / "input").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (90, 120, 160)).save(base / "input" / "example.png")


def demo_install():
    spec = importlib.util.spec_from_file_location("demo_install", ROOT / "demo" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def furnished(tmp_path_factory):
    """A running server with all files in place."""
    base = tmp_path_factory.mktemp("furnished")
    put_files(base)
    demo_install().install_nodes(base)
    demo_install().install_models(base)
    with ComfyUIServer(find_host(), base, device="cpu") as server:
        assert not server.import_failures(), server.log_text()
        yield server
