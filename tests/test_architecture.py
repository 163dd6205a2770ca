"""The house rules that a machine can check: who imports whom, where triton may stand, how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from svdquant_pack import ROOT

ROOMS = ("nodes", "svdq_core", "kernels")
# room: (rooms it may import, installed packages it may import)
ALLOWED = {
    "kernels": (set(), {"torch", "triton"}),
    "svdq_core": ({"kernels"}, {"torch", "safetensors", "numpy"}),
    "nodes": ({"svdq_core"}, {"torch", "numpy", "PIL", "comfy_api", "folder_paths"}),
}
HOST_SEAM = "nodes/host/"  # the one place that may import the host's internals
HOST_INTERNALS = {"comfy", "comfy_aimdo", "comfy_execution", "execution", "latent_preview", "node_helpers", "server"}
HOST_INTERNALS |= {"nodes"}  # the file of that name that is ComfyUI's; this pack's room is imported relatively
# no kernels of their own: one calls compiled ones without Triton's search, the other compiles them beforehand
LAUNCHERS = ("kernels/launching/launch.py", "kernels/launching/ahead.py")
LONGEST_FILE = 300  # lines; a longer file splits along a noun that is already in it


def imports(tree: ast.AST, depth: int):
    """Yield (kind, name) of each import of a file `depth` folders below its room; kind: package, room or outside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (("package", alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield "package", node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level > depth + 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            kind = "room" if node.level == depth + 2 else "outside"
            yield from ((kind, name.split(".")[0]) for name in names)


def holds_kernel(tree: ast.AST) -> bool:
    """Whether a function in the file is a kernel or a device function: decorated with triton.jit or gluon.jit."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    decorators = [ast.unparse(decorator) for node in functions for decorator in node.decorator_list]
    return any(name in text for text in decorators for name in ("triton.jit", "gluon.jit"))


def violations(file: str, source: str) -> list[str]:
    """What in `source` breaks the rules, if it stood at `file` (path from the root)."""
    room, *inner = file.split("/")
    rooms, packages = ALLOWED[room]
    tree = ast.parse(source)
    if file.startswith(HOST_SEAM):
        packages = packages | HOST_INTERNALS
    if room == "kernels" and not holds_kernel(tree) and file not in LAUNCHERS:
        packages = packages - {"triton"}
    known = {"package": packages | sys.stdlib_module_names | {"__future__"}, "room": rooms, "outside": set()}
    return [f"{file} must not import {name}" for kind, name in imports(tree, len(inner) - 1) if name not in known[kind]]


def python_files(*places: str) -> list[Path]:
    found = [path for place in places for path in sorted((ROOT / place).rglob("*.py"))]
    return [path for path in found if "__pycache__" not in path.parts]


@pytest.mark.parametrize("room", ROOMS)
def test_import_directions(room):
    broken = []
    for path in python_files(room):
        broken += violations(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("file", "source", "name"),
    [
        ("kernels/a.py", "from ..svdq_core import layer", "svdq_core"),
        ("kernels/a.py", "from .. import svdq_core", "svdq_core"),
        ("kernels/a.py", "import safetensors", "safetensors"),
        ("kernels/a.py", "import triton", "triton"),
        ("kernels/sub/a.py", "from ...nodes import load_model", "nodes"),
        ("svdq_core/a.py", "import triton.language as tl", "triton"),
        ("svdq_core/a.py", "from kernels import packing", "kernels"),
        ("svdq_core/a.py", "def f():\n    import comfy.utils", "comfy"),
        ("svdq_core/quantize/a.py", "from ...nodes.host import patcher", "nodes"),
        ("nodes/a.py", "from ..kernels import packing", "kernels"),
        ("nodes/a.py", "import comfy.model_management", "comfy"),
        ("nodes/a.py", "from ...elsewhere import thing", "elsewhere"),
        ("nodes/host/a.py", "import comfy_kitchen", "comfy_kitchen"),
    ],
)
def test_a_violation_is_found(file, source, name):
    assert violations(file, source) == [f"{file} must not import {name}"]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("kernels/a.py", "import triton\n@triton.jit\ndef _kernel(x_ptr): ..."),
        ("kernels/a.py", "from triton.experimental import gluon\n@gluon.jit\ndef _kernel(x_ptr): ..."),
        ("kernels/a.py", "from .format import INT4_MAX"),
        ("svdq_core/quantize/a.py", "from ..layer import Part\nfrom ...kernels import packing"),
        ("nodes/a.py", "from comfy_api.latest import io\nfrom ..svdq_core.errors import LoraError"),
        ("nodes/host/a.py", "import comfy.ops\nfrom ...svdq_core import layer\nfrom .. import names"),
    ],
)
def test_what_is_allowed_passes(file, source):
    assert violations(file, source) == []


def test_files_stay_short():
    places = (*ROOMS, "tools", "demo", "tests")
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*places)}
    lengths[ROOT / "dev.py"] = len((ROOT / "dev.py").read_text(encoding="utf-8").splitlines())
    long = [f"{path.relative_to(ROOT)}: {lines}" for path, lines in lengths.items() if lines > LONGEST_FILE]
    assert not long, f"longer than {LONGEST_FILE} lines, split along a noun: {long}"


def test_dev_command_needs_only_the_standard_library():
    pending, seen = [ROOT / "dev.py"], set()
    while pending:
        path = pending.pop()
        seen.add(path)
        for kind, name in imports(ast.parse(path.read_text(encoding="utf-8")), 0):
            own = ROOT / "tools" / f"{name}.py"
            if own.exists():
                pending += [own] if own not in seen else []
            else:
                assert kind == "package" and name in sys.stdlib_module_names, f"{path.name} must not import {name}"
    assert len(seen) > 1


def test_core_imports_without_triton_and_comfy():
    modules = ["kernels"]  # of the rest of that room, what the core imports
    modules += [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in python_files("svdq_core")]
    code = "\n".join(
        [
            "import importlib, sys",
            "sys.modules.update(triton=None, comfy=None, folder_paths=None)",
            f"sys.path.insert(0, {str(ROOT / 'tools')!r})",
            *(f"importlib.import_module('svdquant_pack.{name.removesuffix('.__init__')}')" for name in modules),
        ]
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
