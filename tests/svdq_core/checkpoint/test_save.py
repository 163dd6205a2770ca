"""Writing files: complete or not at all."""

import shutil

import pytest
import torch
from checkpoint_files import read_tensors
from compare import assert_same

from svdquant_pack.svdq_core.checkpoint import require_space, save_tensors
from svdquant_pack.svdq_core.checkpoint.save import save_text
from svdquant_pack.svdq_core.errors import SVDQuantError


def test_a_file_is_written_with_its_metadata(tmp_path):
    path = tmp_path / "deep" / "er" / "x.safetensors"
    save_tensors(path, {"a": torch.arange(4)}, {"key": "value"})
    tensors, metadata = read_tensors(path)
    assert_same(tensors["a"], torch.arange(4))
    assert metadata == {"key": "value"} and [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_a_disk_without_room_is_said_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(SVDQuantError, match=r"GiB are needed and 0\.00 GiB are free"):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(4)}, {})
    with pytest.raises(SVDQuantError, match="nothing was written"):
        require_space(tmp_path / "x.safetensors", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_said(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(SVDQuantError, match="cannot be written"):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(4)}, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(SVDQuantError, match="cannot be written"):
        save_tensors(tmp_path / "file" / "x.safetensors", {"a": torch.ones(4)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "x.safetensors"]


def test_a_text_is_written_whole(tmp_path):
    save_text(tmp_path / "deep" / "x.json", '{"a": "ü"}\n')
    assert (tmp_path / "deep" / "x.json").read_bytes() == '{"a": "ü"}\n'.encode()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.json"]
