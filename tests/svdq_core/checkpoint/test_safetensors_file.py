"""Headers of safetensors files: what safetensors reads is read, what lies about the file is refused, soon."""

import json
import struct
import time

import pytest
import torch
from safetensors.torch import save_file

from svdquant_pack.svdq_core.checkpoint.safetensors_file import DTYPES, SafetensorsFile
from svdquant_pack.svdq_core.errors import CheckpointError


def with_header(path, header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def test_every_dtype_is_read_as_safetensors_wrote_it(tmp_path):
    tensors = {name: (torch.arange(12) % 5).reshape(3, 4).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "one": torch.ones(1, 1, 1)}
    save_file(tensors, tmp_path / "x.safetensors", {"key": "ü"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"key": "ü"} and set(file.names()) == set(tensors)
    for name, tensor in tensors.items():
        found = file.read(name)
        assert found.dtype == tensor.dtype and file.shape(name) == tuple(tensor.shape) == tuple(found.shape)
        assert torch.equal(found.float(), tensor.float()), name
    assert file.dtype("F8_E5M2") == "F8_E5M2"


def test_a_dtype_of_other_models_is_refused_when_read(tmp_path):
    header = {"a": {"dtype": "F4", "shape": [3, 2], "data_offsets": [0, 3]}}
    file = SafetensorsFile(with_header(tmp_path / "x", header, bytes(3)))
    with pytest.raises(CheckpointError, match="x: a is F4, which is not read here"):
        file.read("a")


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"[]", "not a JSON object"),
        (b" {}", "not a JSON object"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b'{"a":' + b"[" * 100_000, "is not JSON"),
        ({"a": 3}, "a is not described by a table"),
        ({"a": entry("Q8")}, "a has an unknown dtype, Q8"),
        ({"a": entry(3)}, "a has an unknown dtype"),
        ({"a": entry(shape=None)}, "no sound shape"),
        ({"a": entry(shape=[4.0])}, "no sound shape"),
        ({"a": entry(shape=[True, 4])}, "no sound shape"),
        ({"a": entry(shape=[-4])}, "size that cannot be"),
        ({"a": entry(offsets=[0])}, "a lies between"),
        ({"a": entry(offsets=[4, 0])}, "a lies between"),
        ({"a": entry(offsets=[0, 2**70])}, "size that cannot be"),
        ({"a": entry(shape=[5])}, r"a, U8 of shape \(5,\), is said to take 4 bytes"),
        ({"a": entry(shape=[1 << 40, 1 << 40], offsets=[0, 4])}, "is said to take 4 bytes"),
        ({"a": entry(offsets=[4, 8])}, "a begins at byte 4, expected 0"),
        ({"a": entry(), "b": entry()}, "begins at byte 0, expected 4"),
        ({}, "its tensors take 0 bytes, and 4 follow the header"),
        ({"a": entry(shape=[8], offsets=[0, 8])}, "its tensors take 8 bytes, and 4 follow the header"),
        ({"__metadata__": {"a": 1}, "a": entry()}, "__metadata__ is not a table of texts"),
        ({"__metadata__": {"a": "\ud800"}, "a": entry()}, "__metadata__ is not a table of texts"),
        (b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{}}', "a stands there twice"),
    ],
)
def test_a_header_that_lies_is_refused(header, words, tmp_path):
    with pytest.raises(CheckpointError, match=f"x: not a readable safetensors file .*{words}.*download it again"):
        SafetensorsFile(with_header(tmp_path / "x", header, bytes(4)))


@pytest.mark.parametrize(("count", "words"), [(500_000, "500000 tensors, more than any"), (50_000, "")])
def test_so_many_names_take_a_bounded_time(count, words, tmp_path):
    none = json.dumps(entry(shape=[0], offsets=[0, 0])).encode()
    text = b"{" + b",".join(b'"n%d":%s' % (n, none) for n in range(count)) + b"}"
    path, started = with_header(tmp_path / "x", text), time.perf_counter()
    if words:
        with pytest.raises(CheckpointError, match=words):
            SafetensorsFile(path)
    else:
        assert len(SafetensorsFile(path).names()) == count
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "\ud800"])
def test_a_name_that_no_disk_can_have(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"there is no such file|cannot be read") as found:
        SafetensorsFile(tmp_path / name, "x")
    assert str(found.value).startswith("x: ")
