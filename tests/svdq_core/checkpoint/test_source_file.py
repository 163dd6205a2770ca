"""A file that somebody changes while it is read: never a crash, never a mixture, always which file and what."""

import os
import shutil

import pytest
import torch
from checkpoint_files import TINY, write_tensors
from native_folders import pixart_folder, write_native

from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.checkpoint.source_file import SourceFile
from svdquant_pack.svdq_core.convert import convert
from svdquant_pack.svdq_core.errors import CheckpointError


def cut(path):
    with path.open("r+b") as file:
        file.truncate(2000)


def overwrite(path):
    """Other values in the same places, as a trainer that saves over its file leaves them."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(range(256)) * 8)


def replace(path):
    other = path.with_name("other")
    shutil.copy(path, other)
    other.replace(path)


def delete(path):
    path.unlink()


CHANGES = {cut: "has 2000", overwrite: "wrote into it", replace: "another file has its name", delete: "it is gone"}


@pytest.fixture(params=list(CHANGES), ids=lambda change: change.__name__)
def change(request):
    return request.param


def test_every_piece_is_in_memory_of_its_own(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {"a": torch.arange(1000), "b": torch.ones(7, dtype=torch.int8)})
    checkpoint = Checkpoint(path)
    before = checkpoint["a"]
    if os.path.exists("/proc/self/maps"):  # noqa: PTH110 - not a file of anybody
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            assert str(path) not in maps.read()
    path.write_bytes(b"")
    assert torch.equal(before, torch.arange(1000))


def test_a_read_says_what_changed(tmp_path, change):
    path = tmp_path / "x"
    path.write_bytes(bytes(10_000))
    file = SourceFile(path, "x")
    assert not file.read(100, 9000).any()
    change(path)
    if change in (cut, overwrite):  # what is open stays readable under another name, or none
        with pytest.raises(CheckpointError, match=f"x: the file changed while it was read: .*{CHANGES[change]}"):
            file.read(100, 9000)
    with pytest.raises(CheckpointError, match=f"x: the file changed while it was read: .*{CHANGES[change]}"):
        file.check()
    file.release()
    with pytest.raises(CheckpointError, match="the file changed"):
        file.read(100, 10)


def test_large_reads_come_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("svdquant_pack.svdq_core.checkpoint.source_file.LARGEST_READ", 7)
    data = bytes(range(100))
    (tmp_path / "x").write_bytes(data)
    assert SourceFile(tmp_path / "x", "x").read_bytes(3, 90) == data[3:93]
    monkeypatch.delattr(os, "preadv", raising=False)
    assert SourceFile(tmp_path / "x", "x").read_bytes(3, 90) == data[3:93]


@pytest.mark.parametrize("half", [0, 1], ids=["while it is checked", "while it is written"])
def test_a_conversion_writes_nothing(tmp_path, change, half):
    source, target = tmp_path / "in" / "x.safetensors", tmp_path / "out" / "y.safetensors"
    source.parent.mkdir()
    shutil.copy(TINY["int4"], source)

    def step(done, total, name):
        if done == half * total // 2 + 3:
            change(source)

    with pytest.raises(CheckpointError, match=rf"x\.safetensors: the file changed .*{CHANGES[change]}"):
        convert(source, target, "bf16", on_progress=step)
    assert list(target.parent.iterdir()) == []


def test_a_model_is_not_loaded(tmp_path, change, monkeypatch):
    source = tmp_path / "x.safetensors"
    shutil.copy(TINY["int4"], source)
    checkpoint, count = Checkpoint(source), 0
    read = Checkpoint.__getitem__

    def reading(self, name):
        nonlocal count
        count += 1
        if count == 20:
            change(source)
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "__getitem__", reading)
    from svdquant_pack.svdq_core.checkpoint import read_checkpoint

    with pytest.raises(CheckpointError, match=rf"x\.safetensors: the file changed .*{CHANGES[change]}"):
        read_checkpoint(checkpoint)


def test_a_pickle_that_changes(tmp_path, change):
    folder = write_native(tmp_path / "run", pixart_folder())
    checkpoint = Checkpoint(folder)
    names = list(checkpoint)
    _ = checkpoint[names[0]]
    checkpoint.release()
    change(folder / "model.pt")
    with pytest.raises(CheckpointError, match=r"run/model\.pt: the file changed"):
        _ = [checkpoint[name] for name in names]
