"""Opening files: whatever cannot be an SVDQuant checkpoint is named for what it is."""

import json
import pickle
import struct

import pytest
import torch
from checkpoint_files import TINY, read_tensors, write_legacy_folder, write_tensors
from compare import assert_same

from svdquant_pack.svdq_core.checkpoint import Checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError


def header(promise):
    """A safetensors header that promises one tensor of that shape, and no data."""
    shape, nbytes = promise
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}}).encode()
    return struct.pack("<Q", len(text)) + text


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


FILES = {
    "empty": (b"", "the file is empty"),
    "three bytes": (b"abc", "not a safetensors file, or cut off"),
    "gguf": (b"GGUF" + bytes(64), "this is a GGUF file"),
    "zip pickle": (b"PK\x03\x04" + bytes(64), "this is a pickle"),
    "old pickle": (pickle.dumps({"a": 1}, protocol=2), "this is a pickle"),
    "newer pickle": (pickle.dumps({"a": 1}, protocol=4), "this is a pickle"),
    "text": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html><body>Access to this model is restricted</body></html>", "this is a web page"),
    "absurd header length": (struct.pack("<Q", 2**63) + b"{}", "its header claims 9223372036854775808 bytes"),
    "shorter than a header": (b"{}", "or cut off: the file has 2 bytes. "),
    "header past the end": (struct.pack("<Q", 1000) + b"{}", "its header claims 1000 bytes, the file has 10"),
    "header of noise": (struct.pack("<Q", 20) + bytes(range(100, 120)), "not a readable safetensors file"),
    "header of a list": (struct.pack("<Q", 2) + b"[]", "not a readable safetensors file"),
    "100 TB promised": (header(([5 * 10**6, 5 * 10**6], 10**14)), "not a readable safetensors file"),
    "shape against bytes": (header(([3], 8)) + bytes(8), "not a readable safetensors file"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_other_files_are_named(content, message, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(path)
    assert str(caught.value).startswith("x.safetensors: ") and message in str(caught.value)


@pytest.mark.parametrize("length", [0x4B50, 0x0280, 0x0480], ids=hex)
def test_a_sound_header_may_begin_like_a_zip_or_a_pickle(length, tmp_path):
    """The first two bytes of the file are those of its header's length."""
    text = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(length)
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + text + b"\7")
    assert Checkpoint(path)["a"].tolist() == [7]


@pytest.mark.parametrize("size", [9, 1000, 20_000, 100_000, 3_900_000])
def test_a_truncated_file_is_refused(size, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(TINY["int4"].read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: .*(cut off|incomplete)"):
        Checkpoint(path)


def test_code_in_a_pickle_does_not_run(tmp_path):
    path, victim = tmp_path / "x.safetensors", tmp_path / "victim"
    path.write_bytes(pickle.dumps(Bomb(victim)))
    with pytest.raises(CheckpointError, match="this is a pickle"):
        Checkpoint(path)
    torch.save({"a": Bomb(victim)}, path)
    with pytest.raises(CheckpointError, match="this is a pickle"):
        Checkpoint(path)
    assert not victim.exists()


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: there is no such file"):
        Checkpoint(tmp_path / "gone.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="there is no such file"):
        Checkpoint(tmp_path / "link.safetensors")


def test_a_folder_without_the_files_is_refused(tmp_path):
    folder = tmp_path / "svdq-folder"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"svdq-folder: .*transformer_blocks\.safetensors"):
        Checkpoint(folder)
    write_legacy_folder(folder)
    (folder / "unquantized_layers.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"unquantized_layers\.safetensors is missing"):
        Checkpoint(folder)


def test_a_tensor_in_both_files_of_a_folder_is_refused(tmp_path):
    folder = write_legacy_folder(tmp_path / "x")
    tensors, _ = read_tensors(folder / "unquantized_layers.safetensors")
    tensors["transformer_blocks.0.qkv_proj.bias"] = torch.zeros(768)
    write_tensors(folder / "unquantized_layers.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"qkv_proj\.bias is stored twice"):
        Checkpoint(folder)


def test_a_symlink_to_a_checkpoint_is_followed(tmp_path):
    (tmp_path / "x.safetensors").symlink_to(TINY["int4"])
    assert len(Checkpoint(tmp_path / "x.safetensors")) == len(Checkpoint(TINY["int4"]))


def test_dtypes_and_shapes_need_no_data():
    checkpoint = Checkpoint(TINY["nvfp4"])
    name = "transformer_blocks.0.qkv_proj.wscales"
    assert checkpoint.dtype(name) == "F8_E4M3" and checkpoint.shape(name) == (16, 768)


def test_other_parts_of_a_whole_checkpoint_are_left_out(tmp_path):
    """A file that also holds text encoders and autoencoder: only the diffusion model counts."""
    tensors = {"model.diffusion_model.a": torch.ones(3), "vae.b": torch.ones(2), "text_encoders.c": torch.ones(1)}
    checkpoint = Checkpoint(write_tensors(tmp_path / "x.safetensors", tensors))
    assert list(checkpoint) == ["a"]
    assert_same(checkpoint["a"], torch.ones(3))


def test_names_that_look_like_paths_are_only_names(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {"../../etc/passwd": torch.ones(1), "/abs": torch.ones(1)})
    assert sorted(Checkpoint(path)) == ["../../etc/passwd", "/abs"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.safetensors"]
