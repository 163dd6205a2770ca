"""Files read into memory: both kinds, in every form in which training programs write them."""

import os

import pytest
import torch
from safetensors.torch import save_file

from svdquant_pack.svdq_core.checkpoint import whole_file
from svdquant_pack.svdq_core.errors import CheckpointError


def read_whole(path, look=None):
    return whole_file.read_whole(path, path.name, "LoRA", look)


def test_numbers_in_a_pickle_are_alphas(tmp_path):
    torch.save(
        {"a.alpha": 2, "a.lora_up.weight": torch.ones(2, 2), "note": "text", 7: torch.ones(1)}, tmp_path / "l.pt"
    )
    assert {key: tensor.tolist() for key, tensor in read_whole(tmp_path / "l.pt").items()} == {
        "a.alpha": 2.0,
        "a.lora_up.weight": [[1.0, 1.0], [1.0, 1.0]],
    }


@pytest.mark.parametrize("form", ["flat", "state_dict", "only one"])
def test_dictionaries_within_a_pickle(tmp_path, form):
    tensors = {"a.lora_up.weight": torch.ones(2, 2), "b": torch.zeros(3)}
    torch.save(
        {"flat": tensors, "state_dict": {"epoch": 3, "state_dict": tensors}, "only one": {"m": tensors}}[form],
        tmp_path / "l.ckpt",
    )
    found = read_whole(tmp_path / "l.ckpt")
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_safetensors_whatever_the_case_of_its_ending(tmp_path):
    tensors = {
        "half": torch.ones(2).bfloat16(),
        "none": torch.zeros(0, 4),
        "eighth": torch.ones(3).to(torch.float8_e4m3fn),
    }
    for name in ("a.safetensors", "b.SFT"):
        save_file(tensors, tmp_path / name)
        found = read_whole(tmp_path / name)
        assert {key: (t.dtype, t.shape) for key, t in found.items()} == {
            k: (t.dtype, t.shape) for k, t in tensors.items()
        }


def test_a_pickle_of_something_else(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "l.pt")
    with pytest.raises(TypeError, match="it holds a list"):
        read_whole(tmp_path / "l.pt")


@pytest.mark.parametrize("content", [b"\x80\x02cos\nsystem\n.", b"{}", b"\xff" * 200])
def test_a_pickle_that_is_no_tensors_advises_nothing_dangerous(tmp_path, content):
    (tmp_path / "l.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"l\.pt: not a readable .* holds something else than tensors") as refused:
        read_whole(tmp_path / "l.pt")
    assert "weights_only" not in str(refused.value)


def test_a_look_at_the_names_comes_first(tmp_path, monkeypatch):
    save_file({"a": torch.ones(1000)}, tmp_path / "x.safetensors")
    monkeypatch.setattr(whole_file.SafetensorsFile, "read", lambda *_: pytest.fail("it was read"))

    def look(names, nbytes):
        assert names == ["a"] and nbytes == (tmp_path / "x.safetensors").stat().st_size
        raise CheckpointError("no")

    with pytest.raises(CheckpointError, match="no"):
        read_whole(tmp_path / "x.safetensors", look)


@pytest.mark.parametrize("name", ["l.safetensors", "l.pt"])
def test_a_file_that_is_written_while_it_is_read(tmp_path, monkeypatch, name):
    path, tensors = tmp_path / name, {"a": torch.ones(1000), "b": torch.ones(1000)}
    (save_file if name == "l.safetensors" else torch.save)(tensors, path)
    old, begun = path.read_bytes(), []
    where = (whole_file.SafetensorsFile, "read") if name == "l.safetensors" else (torch, "load")
    usual = getattr(*where)

    def read(*args, **more):
        result = usual(*args, **more)
        if not begun:
            path.write_bytes(old[:-4000] + bytes(4000))
            os.utime(path, ns=(1, 1))  # some disks count time in steps of milliseconds
        begun.append(1)
        return result

    monkeypatch.setattr(*where, read)
    with pytest.raises(CheckpointError, match=rf"{name}: the file changed while it was read"):
        read_whole(path)
