"""An installed ComfyUI as a library of this process: its model classes, without its server and its nodes.

Standard library only.
"""

import atexit
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from comfyui_source import HOST_FOLDER, ROOT, HostSourceError, check_host, write_stubs

NONE = "none"  # instead of a folder: do without


def find_comfyui(named: str | None) -> Path | None:
    """The ComfyUI to use: the one named, or in COMFYUI_PATH, or around this pack, or of `python dev.py`.

    Args:
        named: a folder, or "none", or None: nothing was named.

    Raises:
        HostSourceError: what was named is no ComfyUI.
    """
    named = named or os.environ.get("COMFYUI_PATH")
    if named:
        return None if named == NONE else check_host(Path(named))
    for folder in (ROOT.parents[1], HOST_FOLDER):  # ComfyUI/custom_nodes/<this pack>
        try:
            return check_host(folder)
        except HostSourceError:
            continue
    return None


def import_comfyui(folder: Path, device: str = "") -> str:
    """Make `import comfy` work.

    Args:
        device: "cpu" keeps off the GPU.

    Returns:
        Why it does not work, in a sentence; "" where it does.
    """
    sys.path.insert(0, str(folder))
    stubs = Path(tempfile.mkdtemp(prefix="svdquant-"))  # some of ComfyUI's modules are imported late
    atexit.register(shutil.rmtree, stubs, ignore_errors=True)
    sys.path.append(str(write_stubs(stubs)))
    sys.dont_write_bytecode = True  # a user's own ComfyUI stays as it is
    saved, sys.argv = sys.argv, ["main.py", *(["--cpu"] if device == "cpu" else [])]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
        importlib.import_module("comfy.model_base")
    except ImportError as error:
        return f"{folder} cannot be used from {sys.executable} ({error}): run this with the Python of that ComfyUI"
    finally:
        sys.argv = saved
    # nodes/host without the node classes beside it, which need ComfyUI's server and all that its own nodes need
    room = ModuleType("svdquant_pack.nodes")
    room.__path__ = [str(ROOT / "nodes")]
    sys.modules.setdefault(room.__name__, room)
    return ""
