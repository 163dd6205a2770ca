"""Writing piece by piece: what safetensors itself would write, and nothing at all when something fails."""

import json
import shutil
import struct

import pytest
import torch
from checkpoint_files import fingerprint, read_tensors

from svdquant_pack.svdq_core.checkpoint.output import Output, cast, whole
from svdquant_pack.svdq_core.checkpoint.stream import write_stream
from svdquant_pack.svdq_core.errors import ArchitectureError, SVDQuantError

TENSORS = {
    "b.half": torch.randn(3, 5).bfloat16(),
    "a.codes": torch.arange(7, dtype=torch.int8),
    "z.wide": torch.randn(4),
    "fp8": torch.randn(6).to(torch.float8_e4m3fn),
    "one": torch.tensor(2.0, dtype=torch.float16),
    "none": torch.zeros(0, 4),
    "columns": torch.randn(4, 6)[:, ::2],
}


def outputs():
    return [whole(name, tensor) for name, tensor in TENSORS.items()]


def test_safetensors_reads_what_was_written(tmp_path):
    path = tmp_path / "x.safetensors"
    write_stream(path, outputs(), {"key": "ü"}, reversed(outputs()))
    found, metadata = read_tensors(path)
    assert metadata == {"key": "ü"}
    assert {n: fingerprint(t) for n, t in found.items()} == {n: fingerprint(t) for n, t in TENSORS.items()}


def test_every_tensor_is_aligned(tmp_path):
    path = tmp_path / "x.safetensors"
    write_stream(path, outputs(), {}, outputs())
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        assert entry["data_offsets"][0] % TENSORS[name].element_size() == 0


def test_the_same_input_gives_the_same_bytes(tmp_path):
    metadata = {f"key {i}": str(i) for i in range(20)}
    for name in ("a", "b"):
        write_stream(tmp_path / name, outputs(), metadata, outputs())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_tensor_may_come_in_blocks(tmp_path):
    tensor = torch.randn(10, 3)
    blocks = Output("x", (10, 3), torch.float32, lambda: tensor.split(4))
    write_stream(tmp_path / "x", [blocks], {}, [blocks])
    assert torch.equal(read_tensors(tmp_path / "x")[0]["x"], tensor) and torch.equal(blocks.tensor(), tensor)


def fails():
    yield outputs()[0]
    raise RuntimeError("stopped")


def short():
    return [Output("b.half", (3, 5), torch.bfloat16, lambda: [TENSORS["b.half"][:2]])]


@pytest.mark.parametrize(
    ("made", "error", "match"),
    [
        (fails, RuntimeError, "stopped"),
        (lambda: outputs()[:-1], SVDQuantError, "1 tensors were announced and not made: columns"),
        (lambda: [whole("new", torch.ones(1))], SVDQuantError, "new is not as it was announced"),
        (lambda: [whole("a.codes", torch.ones(7))], SVDQuantError, "a.codes is not as it was announced"),
        (short, SVDQuantError, "b.half has 20 bytes, expected 30"),
    ],
    ids=["error", "too few", "unknown", "other dtype", "too short"],
)
def test_a_failure_leaves_what_was_there(made, error, match, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(error, match=match):
        write_stream(path, outputs(), {}, made())
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_same_name_twice_is_refused(tmp_path):
    with pytest.raises(SVDQuantError, match="would be written twice"):
        write_stream(tmp_path / "x", [*outputs(), outputs()[0]], {}, outputs())


def test_a_full_disk_is_said_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(SVDQuantError, match="are free on this disk"):
        write_stream(tmp_path / "x", outputs(), {}, outputs())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SVDQuantError, match="cannot be written"):
        write_stream(tmp_path / "file" / "x", outputs(), {}, outputs())


def test_a_cast_says_what_does_not_fit():
    assert cast(torch.tensor([65504.0]), torch.float16, "x").dtype == torch.float16
    with pytest.raises(ArchitectureError, match=r"layer\.bias reaches 7e\+04, more than float16 holds \(6\.55e\+04\)"):
        cast(torch.tensor([-7e4, 1.0]), torch.float16, "layer.bias")
