"""Which ComfyUI the commands use, and what they import of it."""

import subprocess
import sys

import comfyui_library
import pytest
from comfyui_library import find_comfyui
from comfyui_source import HostSourceError, find_host

from svdquant_pack import ROOT


def make_host(folder):
    for name in ("main.py", "nodes.py", "folder_paths.py", "comfy"):
        (folder / name).mkdir(parents=True)
    return folder


def test_what_is_named_comes_first(tmp_path, monkeypatch):
    named, by_variable, around = (make_host(tmp_path / name) for name in ("named", "variable", "around"))
    monkeypatch.setattr(comfyui_library, "ROOT", around / "custom_nodes" / "pack")
    monkeypatch.setattr(comfyui_library, "HOST_FOLDER", tmp_path / "none-there")
    monkeypatch.setenv("COMFYUI_PATH", str(by_variable))
    assert find_comfyui(str(named)) == named and find_comfyui(None) == by_variable
    monkeypatch.delenv("COMFYUI_PATH")
    assert find_comfyui(None) == around and find_comfyui("none") is None
    monkeypatch.setattr(comfyui_library, "ROOT", tmp_path / "a" / "b")
    assert find_comfyui(None) is None
    with pytest.raises(HostSourceError, match="is not a folder"):
        find_comfyui(str(tmp_path / "nowhere"))


PROGRAM = """
import sys
sys.path.insert(0, {tools!r})
from pathlib import Path
from comfyui_library import import_comfyui
assert not import_comfyui(Path({host!r}), "cpu")
import svdquant_pack.nodes.host.quantize.file_source
print([name for name in ("server", "aiohttp", "svdquant_pack.nodes.load_model") if name in sys.modules])
"""


@pytest.mark.host
def test_no_server_and_no_node_classes_are_needed():
    program = PROGRAM.format(tools=str(ROOT / "tools"), host=str(find_host()))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "server" not in done.stdout and "load_model" not in done.stdout
