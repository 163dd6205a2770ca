"""The real server as a client sees it: start and stop, prompts, files, and what it says when something is wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import comfyui_server
import pytest
from comfyui_pack import PACK_NAME, install_pack
from comfyui_server import ComfyUIError, ComfyUIServer, failure_text
from comfyui_source import find_host

LATENT = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
SAVE = {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "latent"}}


def test_graph_runs_and_its_file_comes_back(server):
    entry = server.prompt({"1": LATENT, "2": SAVE})
    (saved,) = entry["outputs"]["2"]["latents"]
    data = server.view(saved)
    assert data == (server.base / "output" / saved["filename"]).read_bytes()


def test_upload_is_found_by_nodes(server):
    assert server.upload("picture.png", b"not a picture") == "picture.png"
    assert server.view({"filename": "picture.png", "type": "input"}) == b"not a picture"
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "picture.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    with pytest.raises(ComfyUIError, match=r"node 1 \(LoadImage\): .*cannot identify image file"):
        server.prompt(graph)
    assert server.prompt({"1": LATENT, "2": SAVE}), "the server goes on"


def test_refused_graph_names_node_and_input(server):
    wrong = {"class_type": LATENT["class_type"], "inputs": {**LATENT["inputs"], "width": "wide"}}
    with pytest.raises(ComfyUIError, match=r"node 1 \(EmptySD3LatentImage\): .*width, wide"):
        server.prompt({"1": wrong, "2": SAVE})
    with pytest.raises(ComfyUIError, match="'NoSuchNode' not found"):
        server.prompt({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_graph_that_is_only_half_valid_is_refused(server):
    graph = {"1": LATENT, "2": SAVE, "3": {**SAVE, "inputs": {"filename_prefix": "latent"}}}
    with pytest.raises(ComfyUIError, match=r"node 3 \(SaveLatent\): Required input is missing: samples"):
        server.prompt(graph)


def test_missing_file_is_an_error(server):
    with pytest.raises(ComfyUIError, match="HTTP 404 from /view"):
        server.view({"filename": "nothing.png", "type": "output"})


def test_nodes_come_from_the_dashed_folder(server):
    ours = {name: node for name, node in server.object_info().items() if node["python_module"].endswith(PACK_NAME)}
    assert ours, server.log_text()
    assert {node["python_module"] for node in ours.values()} == {f"custom_nodes.{PACK_NAME}"}
    assert server.import_failures() == []


def test_pack_that_breaks_at_import_is_noticed(server, tmp_path):
    other = ComfyUIServer(server.host, tmp_path)
    pack = str(tmp_path / "custom_nodes" / PACK_NAME)
    lines = [
        f"[WARNING] Cannot import {pack} module for custom nodes: no such thing",
        f"   0.0 seconds (IMPORT FAILED): {pack}",
        f"[WARNING] Error while calling comfy_entrypoint in {pack}: broken",
        "[WARNING] Cannot import /somewhere/comfy_extras/nodes_glsl.py module for custom nodes: not ours",
        f"   0.0 seconds: {pack}",
    ]
    other.log.write_text("\n".join(lines))
    assert other.import_failures() == lines[:3]


@pytest.mark.slow
def test_host_that_does_not_start_shows_its_log(server, tmp_path):
    broken = ComfyUIServer(server.host, tmp_path, device="cpu", extra_args=("--no-such-option",))
    with pytest.raises(ComfyUIError, match=r"(?s)process is gone \(exit code 2\).*unrecognized arguments: --no-such"):
        broken.start()
    with pytest.raises(ComfyUIError, match="process is gone"):
        broken.object_info()


@pytest.mark.slow
@pytest.mark.host
def test_stopped_server_is_gone_and_the_host_folder_unchanged(tmp_path):
    host = find_host()

    def files():
        found = (path for path in host.rglob("*") if "__pycache__" not in path.parts and path.is_file())
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}

    before = files()
    with ComfyUIServer(host, tmp_path, device="cpu") as running:
        running.prompt({"1": LATENT, "2": SAVE})
        process = running._process
    assert process.poll() is not None
    assert files() == before
    with pytest.raises(ComfyUIError, match="process is gone"):
        running.object_info()


@pytest.mark.slow
@pytest.mark.host
@pytest.mark.skipif(os.name == "nt", reason="asks for a process by POSIX means")
def test_server_ends_with_a_starter_that_was_killed(tmp_path):
    code = (
        "import os, sys, comfyui_server\n"
        "server = comfyui_server.ComfyUIServer(sys.argv[1], sys.argv[2], device='cpu')\n"
        "server.start()\n"
        "print(server._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    tools = str(Path(comfyui_server.__file__).parent)
    starter = subprocess.run(
        [sys.executable, "-c", code, str(find_host()), str(tmp_path)],
        env=dict(os.environ, PYTHONPATH=tools),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert starter.returncode == -9
    process = int(starter.stdout)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(process, 9)
    pytest.fail("the server outlived its starter")


def test_pack_folder_holds_only_what_users_get(tmp_path):
    pack = install_pack(tmp_path)
    install_pack(tmp_path)  # a second time replaces it
    names = {path.name for path in pack.iterdir()}
    assert {"__init__.py", "nodes", "svdq_core", "kernels"} <= names
    assert not names & {"tests", "tools", "demo", ".dev", "dev.py", ".git"}


def test_pack_is_copied_where_links_are_not_allowed(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError("a required privilege is not held")

    monkeypatch.setattr("pathlib.Path.symlink_to", refused)
    pack = install_pack(tmp_path)
    assert not (pack / "nodes").is_symlink()
    assert (pack / "kernels" / "reference.py").is_file()
    assert not list(pack.rglob("__pycache__"))


def test_failure_text_of_an_interruption():
    messages = [["execution_start", {}], ["execution_interrupted", {"node_id": "3", "node_type": "KSampler"}]]
    assert failure_text(json.loads(json.dumps(messages))) == "interrupted at node 3 (KSampler)"
