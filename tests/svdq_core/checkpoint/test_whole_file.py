"""Files read into memory: both kinds, in every form in which training programs write them."""

import pytest
import torch
from safetensors.torch import save_file

from svdquant_pack.svdq_core.checkpoint.whole_file import read_whole


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
