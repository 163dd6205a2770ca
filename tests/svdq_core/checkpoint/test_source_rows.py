"""Rows of a source layer: only they are read, in whole tiles, and nothing of a layer stays in the memory it lay in."""

from dataclasses import replace

import pytest
import torch
from checkpoint_files import DATA, write_tensors

from svdquant_pack.svdq_core.checkpoint import Checkpoint, plan_checkpoint
from svdquant_pack.svdq_core.checkpoint.source_file import SourceFile
from svdquant_pack.svdq_core.checkpoint.source_rows import TILE, read_rows
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.layer import QuantizedLayer
from svdquant_pack.svdq_core.models import LinearMap
from svdquant_pack.svdq_core.models.layer_maps import halves, thirds

ROWS, COLUMNS = 3 * TILE, 2 * TILE
PIECE = LinearMap("v", ("qkv",), piece=2, split=thirds)
SWAPPED = LinearMap("w", ("w",), swapped=True)
FILES = {name: DATA / "families" / f"{name}.safetensors" for name in ("zimage_nvfp4", "krea2_int4", "qwen_nvfp4")}


@pytest.fixture
def checkpoint(tmp_path):
    numbers = torch.arange(ROWS * COLUMNS // 2, dtype=torch.int32)
    tensors = {
        "a.qweight": numbers.to(torch.int8).view(ROWS, COLUMNS // 2),
        "a.wscales": torch.randn(COLUMNS // 16, ROWS).to(torch.float8_e4m3fn),
        "a.bias": torch.randn(ROWS).bfloat16(),
        "a.proj_down": torch.randn(COLUMNS, 32).bfloat16(),
        "a.proj_up": torch.randn(ROWS, 32).bfloat16(),
        "a.exact_bias": torch.randn(ROWS),
        "b.qweight": torch.randint(-8, 7, (2 * TILE, TILE), dtype=torch.int8),
    }
    return Checkpoint(write_tensors(tmp_path / "x.safetensors", tensors, {})), tensors


def read(checkpoint, linear, layer="a"):
    names = {name.removeprefix(f"{layer}."): name for name in checkpoint if name.startswith(f"{layer}.")}
    return read_rows(checkpoint, names, linear, "x")


def test_a_piece_is_its_tiles_and_all_that_belongs_to_its_inputs(checkpoint):
    checkpoint, tensors = checkpoint
    found = read(checkpoint, PIECE)
    last = 2 * TILE
    assert torch.equal(found["qweight"], tensors["a.qweight"][last:])
    assert torch.equal(found["bias"], tensors["a.bias"][last:])
    assert torch.equal(found["proj_up"].flatten(), tensors["a.proj_up"].flatten()[last * 32 :])
    assert torch.equal(found["proj_down"], tensors["a.proj_down"])
    assert torch.equal(found["exact_bias"], tensors["a.exact_bias"][last:])
    raw = tensors["a.wscales"].view(torch.uint8).flatten()
    assert found["wscales"].shape == (COLUMNS // 16, TILE) and found["wscales"].dtype == torch.float8_e4m3fn
    assert torch.equal(found["wscales"].view(torch.uint8).flatten(), raw[-raw.numel() // 3 :])


def test_halves_change_places(checkpoint):
    checkpoint, tensors = checkpoint
    upper, lower = tensors["b.qweight"].chunk(2)
    assert torch.equal(read(checkpoint, SWAPPED, "b")["qweight"], torch.cat((lower, upper)))


def test_rows_of_others_are_not_read(checkpoint, monkeypatch):
    checkpoint, tensors = checkpoint
    seen, original = [], SourceFile.read

    def noted(self, start, nbytes, out=None):
        seen.append(nbytes)
        return original(self, start, nbytes, out)

    monkeypatch.setattr(SourceFile, "read", noted)
    read(checkpoint, PIECE)
    whole = [tensors[f"a.{name}"].nbytes for name in ("proj_down", "exact_bias")]
    shared = [tensors[f"a.{name}"].nbytes // 3 for name in ("qweight", "wscales", "bias", "proj_up")]
    assert sorted(seen) == sorted(whole + shared)


@pytest.mark.parametrize(
    ("linear", "message"),
    [
        (replace(PIECE, split=halves, piece=1), "do not lie in whole tiles"),
        (replace(PIECE, split=lambda rows, columns: (rows, rows)), "do not split into"),
    ],
)
def test_a_source_that_does_not_split_so(checkpoint, linear, message):
    with pytest.raises(CheckpointError, match=message):
        read(checkpoint[0], linear)


@pytest.mark.parametrize("name", FILES)
def test_nothing_of_a_layer_stays_in_the_memory_it_was_read_into(name):
    """The next layer of the thread lies there: here it is overwritten after each."""
    whole = dict(plan_checkpoint(Checkpoint(FILES[name])).entries())
    checkpoint = Checkpoint(FILES[name])
    kept = {}
    for host, entry in plan_checkpoint(checkpoint).entries():
        kept[host] = entry
        checkpoint.staging.restart()
        checkpoint.staging.take(1 << 20).fill_(0xFF)
    for host, entry in kept.items():
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in _pairs(entry, whole[host])), host


def _pairs(entry, other):
    if not isinstance(entry, QuantizedLayer):
        yield entry.reshape(-1), other.reshape(-1)
        return
    for part, same in zip(entry.parts, other.parts, strict=True):
        yield from ((tensor.reshape(-1), same[name].reshape(-1)) for name, tensor in part.tensors.items())
    if entry.bias is not None:
        yield entry.bias, other.bias
