"""Rules of names and signatures that a machine can check: few positional arguments, one thing for each name."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from test_architecture import python_files

from svdquant_pack import ROOT

MOST_POSITIONAL = 5  # a sixth argument is named where it is handed over
PLACES = ("nodes", "svdq_core", "kernels", "tools", "demo", "research", "benchmarks", "tests")
# Functions whose callers are not ours, and hand these arguments over by position.
CALLED_BY_OTHERS = {
    "nodes/host/attention.py attend": "an override of ComfyUI's attention",
    "nodes/host/graphs/forward.py run_graphed": "a wrapper of ComfyUI's apply_model",
    "nodes/host/model/quantized_linear.py _load_from_state_dict": "torch.nn.Module's",
    "svdq_core/checkpoint/pickle_program.py _tensor_of_dtype": "called by a pickle, as torch._utils' function",
    "kernels/tiles.py part_position": "compiled by Gluon as well, in kernels",
    "tests/kernels/launching/test_replay.py run": "stands in for a launcher of Triton's",
    "tests/nodes/features/test_flux.py on_input": "a patch of ComfyUI's attention",
    "tests/nodes/host/quantize/test_plan_patcher.py __init__": "a model class of ComfyUI's form",
}
COMPILED = ("jit", "custom_op", "register_fake")  # decorators: kernels, and operations with a schema of torch's
# room: those that it calls. Within them a class or a file's name means one thing.
CALLS = {
    "nodes": {"svdq_core", "kernels"},
    "svdq_core": {"kernels"},
    "kernels": set(),
    "demo": {"svdq_core", "kernels"},
    "research": {"demo", "svdq_core", "kernels"},
    "benchmarks": {"research", "nodes", "svdq_core", "kernels"},
    "tools": {"kernels"},
}


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def too_many(tree: ast.Module) -> list[str]:
    """Functions with more than MOST_POSITIONAL arguments that may be handed over by position."""
    found = []
    methods = {f for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for f in c.body}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            count = len(names) - (node in methods and names[:1] in (["self"], ["cls"]))
            decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
            if count > MOST_POSITIONAL and not any(word in decorators for word in COMPILED):
                found.append(node.name)
    return found


def test_few_arguments_by_position():
    found = []
    for path in [ROOT / "dev.py", *python_files(*PLACES)]:
        file = path.relative_to(ROOT).as_posix()
        names = too_many(parsed(file))
        if file.startswith("tests/"):  # pytest hands arguments over by name
            names = [name for name in names if not name.startswith("test_")]
        found += [f"{file} {name}" for name in names]
    new = sorted(set(found) - CALLED_BY_OTHERS.keys())
    assert not new, f"more than {MOST_POSITIONAL} positional arguments, name the rest behind a *: {new}"
    assert set(found) == CALLED_BY_OTHERS.keys(), "an exception that is none any more"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(a, b, c, d, e, g): ...", ["f"]),
        ("def f(a, b, c, d, e, *, g): ...", []),
        ("class A:\n    def f(self, a, b, c, d, e): ...", []),
        ("class A:\n    def f(self, a, b, c, d, e, g): ...", ["f"]),
        ("def f():\n    def inner(a, b, c, d, e, g=1): ...", ["inner"]),
        ("@triton.jit\ndef kernel(a, b, c, d, e, g): ...", []),
    ],
)
def test_too_many_are_counted(source, names):
    assert too_many(ast.parse(source)) == names


def clashes(places: dict[str, list[str]]) -> list[str]:
    """Names of `places` (name: files, as paths from the root) that stand twice in a room and those that it calls."""
    found = []
    for name, files in places.items():
        for room, called in CALLS.items():
            within = [file for file in files if file.split("/")[0] in {room, *called}]
            if len(within) > 1 and any(file.startswith(f"{room}/") for file in within):
                found.append(f"{name}: {', '.join(within)}")
                break
    return found


def _files() -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in python_files(*CALLS)]


def test_no_two_files_of_one_name():
    places = defaultdict(list)
    for file in _files():
        if Path(file).name not in {"__init__.py", "__main__.py"}:
            places[Path(file).name].append(file)
    assert not clashes(places), "one name for two files in rooms that call each other"


def test_no_two_classes_of_one_name():
    places = defaultdict(list)
    for file in _files():
        for node in parsed(file).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(file)
    assert not clashes(places), "one name for two classes in rooms that call each other"


def test_a_clash_is_found():
    assert clashes({"Job": ["nodes/a.py", "svdq_core/b.py"]}) == ["Job: nodes/a.py, svdq_core/b.py"]
    assert clashes({"Job": ["kernels/a.py", "kernels/b.py"], "Alone": ["nodes/a.py"]})
    assert not clashes({"Job": ["tools/a.py", "svdq_core/b.py"]})


def test_the_rooms_that_call_each_other_are_named():
    for file in _files():
        room, folder = file.split("/")[0], file.split("/")[:-1]
        for node in ast.walk(parsed(file)):
            if not isinstance(node, ast.ImportFrom):
                continue
            inside = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            name = inside[0] if node.level else (node.module or "").removeprefix("svdquant_pack.").split(".")[0]
            ours = node.level or (node.module or "").startswith("svdquant_pack.")
            assert not ours or name not in CALLS or name in {room, *CALLS[room]}, f"{file} calls {name}"


SWITCHES = re.compile(
    r"(?:environ\.(?:get|pop|setdefault)\(|environ\[)\"(\w+)\"|^[A-Z]+ = \"(SVDQUANT_\w+|TORCH_\w+)\"", re.M
)
NOT_A_CHOICE = {"SVDQUANT_TYPED", "OMP_WAIT_POLICY"}  # handed from one of our programs to another


def test_every_environment_variable_stands_in_the_table():
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Environment variables")[2]
    named = set(re.findall(r"`([A-Z_0-9]+)(?:=\d)?`", table))
    sources = [(ROOT / file).read_text(encoding="utf-8") for file in [*_files(), "dev.py"]]
    read = {name for source in sources for pair in SWITCHES.findall(source) for name in pair if name}
    assert "SVDQUANT_REPLAY" in read and "COMFYUI_PATH" in read
    assert read - NOT_A_CHOICE <= named, "read, and not in docs/architecture.md"
