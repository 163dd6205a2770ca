"""Files of torch.save: nothing in them runs, nothing in them makes memory out of nothing."""

import io
import zipfile

import pytest
import torch
from native_folders import pixart_folder, write_native

from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError


class Runs:
    """Opens a file for writing when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def folder(tmp_path):
    return write_native(tmp_path / "run", pixart_folder())


def refused(folder, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        Checkpoint(folder)
    assert str(caught.value).startswith("run/model.pt: ")


def test_tensors_keep_their_names_and_stay_mapped(folder):
    checkpoint = Checkpoint(folder)
    name = "model.pt/transformer_blocks.0.attn1.to_q.weight"
    assert checkpoint.shape(name) == (128, 128) and checkpoint.dtype(name) == "float16"
    assert "branch.pt/transformer_blocks.0.attn1.to_q/a.weight" in checkpoint
    assert checkpoint.flags == {"smooth.pt/proj.fuse_when_possible": False}
    before = checkpoint[name].clone()
    checkpoint.release()
    assert torch.equal(checkpoint[name], before)


def test_code_does_not_run(folder, tmp_path):
    victim = tmp_path / "victim"
    torch.save({"a": Runs(victim)}, folder / "model.pt")
    refused(folder, "cannot be read safely")
    assert not victim.exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", bytes(300), b"\x80\x02}q\x00."], ids=["empty", "zip", "zeros", "old"]
)
def test_other_files_are_refused(content, folder):
    (folder / "model.pt").write_bytes(content)
    refused(folder, "not a file of torch.save")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(keep, folder):
    data = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(data[: int(keep * len(data))])
    refused(folder, r"not a file of torch\.save|cannot be read safely")


def test_a_compressed_storage_is_refused(folder):
    """A megabyte of zip may inflate to a terabyte."""
    packed = io.BytesIO()
    with zipfile.ZipFile(folder / "model.pt") as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    (folder / "model.pt").write_bytes(packed.getvalue())
    refused(folder, "is compressed")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.zeros(1).expand(10**6, 10**6), "claims 1000000000000 values"),
        (torch.empty(10**9, 10**4, device="meta"), "expected an ordinary tensor"),
        (torch.ones(3, 3).to_sparse(), "expected an ordinary tensor"),
        ([1, 2], "is a list, expected an ordinary tensor"),
    ],
    ids=["expanded", "meta", "sparse", "list"],
)
def test_what_is_no_ordinary_tensor_is_refused(value, match, folder):
    torch.save({"a": value}, folder / "model.pt")
    refused(folder, match)


def test_a_list_instead_of_a_dictionary_is_refused(folder):
    torch.save([torch.ones(2)], folder / "model.pt")
    refused(folder, "holds a list, expected a dictionary")
