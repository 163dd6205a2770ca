"""Files of torch.save: nothing in them runs, nothing in them makes memory out of nothing."""

import io
import time
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


def test_tensors_keep_their_names(folder):
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


def with_program(folder, program):
    """The tensors of model.pt under another program."""
    made = io.BytesIO()
    with zipfile.ZipFile(folder / "model.pt") as source, zipfile.ZipFile(made, "w") as target:
        for info in source.infolist():
            target.writestr(info.filename, program if info.filename.endswith("/data.pkl") else source.read(info))
    (folder / "model.pt").write_bytes(made.getvalue())


def doubled(levels):
    """A dictionary whose key is a tuple of two of a tuple of two of ...: looking it up takes 2**levels steps."""
    return b"\x80\x02}" + b"K\x01" + b"q\x00h\x00\x86" * levels + b"K\x02s."


HOSTILE = {
    "nested lists": (b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".", "holds a list"),
    "nested dictionaries": (b"\x80\x02}" + b"K\x01}" * 200_000 + b"s" * 200_000 + b".", "is a dict, expected"),
    "tuples of tuples": (doubled(60), "a key of its table is a tuple"),
    "a far place in the memo": (b"\x80\x02}r\xff\xff\xff\x7f.", ""),
    "too long": (b"\x80\x02" + b"]0" * (5 << 20) + b".", "more than any model's"),
    "a huge number": (b"\x80\x02}K\x01\x8b" + (1 << 20).to_bytes(4, "little") + b"\x7f" * (1 << 20) + b"s.", "LONG4"),
    "no end": (b"\x80\x02}", "cannot be read safely"),
    "nothing on the stack": (b"\x80\x02s.", "cannot be read safely"),
    "no mark": (b"\x80\x02}u.", "instructions do not fit"),
    "state of a number": (b"\x80\x02K\x01K\x02b.", "it changes a int"),
    "a call of a text": (b"\x80\x02X\x01\x00\x00\x00a)R.", "calls something without a name"),
    "another package": (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", r"names 'os\.system'"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_programs_end_soon_in_a_sentence(kind, folder):
    program, words = HOSTILE[kind]
    with_program(folder, program)
    started = time.perf_counter()
    if words:
        refused(folder, words)
    else:
        Checkpoint(folder)
    assert time.perf_counter() - started < 10


def test_every_kind_of_number_is_read_as_torch_does(folder):
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int32]
    kinds += [torch.int16, torch.int8, torch.uint8, torch.bool]
    state = {str(kind).removeprefix("torch."): (torch.arange(24) % 5).reshape(4, 6).to(kind) for kind in kinds}
    wide = torch.arange(100.0).reshape(10, 10)
    state |= {"view": wide[2:5, 1:9:2], "transposed": wide.T, "scalar": wide[3, 4], "none": wide[:0]}
    state["parameter"] = torch.nn.Parameter(wide)
    torch.save(state, folder / "model.pt")
    checkpoint = Checkpoint(folder)
    for name, tensor in state.items():
        found = checkpoint[f"model.pt/{name}"]
        assert found.dtype == tensor.dtype and found.shape == tensor.shape, name
        assert torch.equal(found.float(), tensor.detach().float()), name
