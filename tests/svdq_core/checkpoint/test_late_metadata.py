"""Metadata that are filled into a file which is there already."""

import pytest
import torch

from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.checkpoint.late_metadata import ROOM, fill_in, leave_room
from svdquant_pack.svdq_core.checkpoint.save import save_tensors
from svdquant_pack.svdq_core.errors import SVDQuantError


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "x.safetensors"
    save_tensors(file, {"a.weight": torch.arange(4.0)}, {"key": leave_room(), "other": "stays"})
    return file


@pytest.mark.parametrize("text", ["error 0.03 (largest 0.05)", "x" * (ROOM + 40)])
def test_only_the_text_changes(path, text):
    before = path.read_bytes()
    fill_in(path, "key", text)
    checkpoint = Checkpoint(path)
    assert checkpoint.metadata == {"key": text[:ROOM].ljust(ROOM), "other": "stays"}
    assert torch.equal(checkpoint["a.weight"], torch.arange(4.0)) and path.stat().st_size == len(before)


@pytest.mark.parametrize(("key", "text"), [("other", "no"), ("key", "größer")])
def test_no_room(path, key, text):
    before = path.read_bytes()
    with pytest.raises(SVDQuantError, match="no room was left"):
        fill_in(path, key, text)
    assert path.read_bytes() == before
