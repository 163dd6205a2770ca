"""The command line: what it prints, its exit codes, and how little memory a conversion takes."""

import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import TINY, read_tensors, write_tensors

from svdquant_pack import ROOT
from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.quantize import spec


def run(*arguments, env=None):
    command = [sys.executable, str(ROOT / "svdq_core"), "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(ROOT).anchor, check=False, env=env)


def test_the_command(tmp_path):
    done = run(TINY["int4"], tmp_path / "c.safetensors", "--to", "comfy")
    assert done.returncode == 0, done.stderr
    assert "note: linear2 has signed and unsigned" in done.stdout and "117 tensors" in done.stdout
    again = run(TINY["int4"], tmp_path / "c.safetensors", "--to", "comfy")
    assert again.returncode == 1 and "exists already" in again.stderr and "Traceback" not in again.stderr
    assert run(TINY["int4"], tmp_path / "d.safetensors", "--to", "gguf").returncode == 2
    strict = run(TINY["int4"], tmp_path / "d.safetensors", "--to", "comfy", "--strict")
    assert strict.returncode == 1 and "Without --strict" in strict.stderr


def test_a_python_without_torch_is_told_which_one_to_take():
    command = [
        sys.executable,
        "-S",
        str(ROOT / "svdq_core"),
        "convert",  # no installed package can be imported
        "in",
        "out",
        "--to",
        "comfy",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "has no torch" in done.stderr and "dev.py convert in out --to comfy" in done.stderr


def test_choices_are_those_of_the_quantizer():
    command_line = runpy.run_path(str(ROOT / "svdq_core" / "__main__.py"), run_name="read")
    for name in ("PRECISIONS", "ACTIVATIONS", "PRESETS"):
        assert command_line[name] == getattr(spec, name)


def test_the_command_is_one_of_dev_py(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    arguments = importlib.import_module("dev").COMMANDS["convert"].arguments
    assert [argument.format(root=ROOT) for argument in arguments] == [str(ROOT / "svdq_core"), "convert"]


def test_names_that_are_no_text(tmp_path):
    """A Linux disk takes any bytes; a terminal without UTF-8 prints none of them."""
    source, target = tmp_path / "\u65e5\udcff.safetensors", tmp_path / "\u51fa\udcfe.safetensors"
    try:
        shutil.copy(TINY["int4"], source)
    except OSError:
        pytest.skip("this disk takes only text as names")
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = run(source, target, "--to", "bf16", env=plain)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "\\udcfe.safetensors: " in done.stdout
    assert Checkpoint(target).metadata["svdquant_source"].endswith("\\udcff.safetensors")
    again = run(source, target, "--to", "bf16", env=plain)
    assert again.returncode == 1 and "exists already" in again.stderr


MEMORY = """
import sys
sys.path.insert(0, {tools!r})
from pathlib import Path
from svdquant_pack.svdq_core import convert as module
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
module.convert(Path({warm!r}), Path({target!r} + ".warm"), {to!r})  # what torch loads once
before = peak()
module.convert(Path({source!r}), Path({target!r}), {to!r})
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("to", ["nunchaku", "bf16"])
def test_memory_does_not_grow_with_the_model(to, tmp_path):
    """A hundred single blocks, 87 MB, of which a few layers are in memory at a time."""
    tensors, metadata = read_tensors(TINY["int4"])
    config = json.loads(metadata["config"]) | {"num_single_layers": 100}
    many = {n: t for n, t in tensors.items() if not n.startswith("single_")}
    for index in range(100):
        many |= {
            n.replace("_blocks.0.", f"_blocks.{index}."): t.clone()
            for n, t in tensors.items()
            if n.startswith("single_")
        }
    source = write_tensors(tmp_path / "big.safetensors", many, metadata | {"config": json.dumps(config)})
    del many
    code = MEMORY.format(
        tools=str(ROOT / "tools"),
        source=str(source),
        warm=str(TINY["int4"]),
        target=str(tmp_path / "out.safetensors"),
        to=to,
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout) * 1024
    assert grown < 0.6 * source.stat().st_size, f"{grown / 1e6:.0f} MB"
