"""benchmarks/checkpoint_speed.py: the random files of families are ones that are read, of about the size asked for."""

import sys
from dataclasses import replace

import pytest

from svdquant_pack import ROOT
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.stream import write_stream
from svdquant_pack.svdq_core.models import ARCHITECTURES


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("checkpoint_speed", "family_file"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import checkpoint_speed

    return checkpoint_speed


@pytest.mark.parametrize("name", ["qwen_image", "chroma", "flux2", "pixart"])
def test_a_small_file_is_read(benchmark, name, tmp_path):
    family = ARCHITECTURES[name]
    model = replace(family.published[0], width=128, shapes={}, counts={block.host: 2 for block in family.blocks})
    made = benchmark.FamilyFile(family, model, benchmark.random_output, "nvfp4", 16).outputs(1e9)
    path = tmp_path / "x.safetensors"
    write_stream(path, made, {}, made)
    read = read_checkpoint(Checkpoint(path))
    assert read.architecture.name == name
    assert len(read.layers) == sum(2 * len(block.linears) for block in family.blocks)


def test_a_size_is_kept(benchmark):
    family = ARCHITECTURES["qwen_image"]
    made = benchmark.FamilyFile(family, family.published[0], benchmark.random_output, "int4", 32)
    for gib in (1.0, 3.0):
        assert sum(o.nbytes for o in made.outputs(gib * 2**30)) / 2**30 == pytest.approx(gib, rel=0.15)
    assert sum(o.nbytes for o in made.outputs(1e12)) / 1e9 == pytest.approx(11.5, abs=0.2)  # the published file
