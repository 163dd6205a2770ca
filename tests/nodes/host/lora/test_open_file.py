"""LoRA files are read, not mapped: what happens to the file afterwards does not matter to the server."""

import sys
from pathlib import Path

import pytest
import torch
from lora_files import diffusers_lora
from safetensors.torch import save_file
from sampling import sample_flux

from svdquant_pack.nodes.host.lora import open_file
from svdquant_pack.nodes.host.lora.lora_file import apply_lora_file
from svdquant_pack.nodes.host.lora.open_file import open_lora, shown_name
from svdquant_pack.svdq_core.checkpoint.safetensors_file import SafetensorsFile
from svdquant_pack.svdq_core.errors import LoraError


@pytest.fixture(autouse=True)
def nothing_kept():
    open_file._kept.clear()


def put(folder: Path, seed: int = 5) -> str:
    path = folder / f"lora-{seed}.safetensors"
    save_file(diffusers_lora(seed), path)
    return str(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc, and Windows locks mapped files")
def test_a_file_truncated_in_place_after_loading(model, plain, tmp_path):
    """As by a trainer that saves over it. A mapping of it would end this process at the next read."""
    path = put(tmp_path)
    patched, _ = apply_lora_file(model, path, 0.5)
    expected = sample_flux(patched)
    assert path not in Path("/proc/self/maps").read_text()
    with open(path, "r+b") as file:  # noqa: PTH123
        file.truncate(100)
    sample_flux(model)
    assert torch.equal(sample_flux(patched), expected)
    stronger = patched.clone()
    stronger.add_patches({key: value[0][1] for key, value in patched.patches.items() if value[0][3] is None}, 0.1)
    assert not torch.equal(sample_flux(stronger), expected)
    with pytest.raises(LoraError, match=r"lora-5\.safetensors: not a readable LoRA file"):
        apply_lora_file(model, path, 0.5)
    assert torch.equal(sample_flux(model), plain)


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path):
    path = put(tmp_path)
    first, second = open_lora(path), open_lora(path)
    assert first is not second and all(first[key] is second[key] for key in first)
    save_file({**diffusers_lora(6), "more.alpha": torch.ones(())}, path)
    assert "more.alpha" in open_lora(path)


def test_only_recent_files_are_kept(tmp_path, monkeypatch):
    paths = [put(tmp_path, seed) for seed in range(6)]
    one = sum(tensor.nbytes for tensor in open_lora(paths[0]).values())
    monkeypatch.setattr(open_file, "KEPT_BYTES", 2 * one)
    for path in paths:
        open_lora(path)
    assert [Path(path).name for path, _ in open_file._kept] == ["lora-4.safetensors", "lora-5.safetensors"]
    monkeypatch.setattr(open_file, "KEPT_BYTES", 1)
    open_lora(paths[2])
    assert len(open_file._kept) == 1  # the last one always: changing its strength reads nothing


def test_more_tensors_than_any_lora_has(tmp_path, monkeypatch):
    monkeypatch.setattr(open_file, "MOST_TENSORS", 10)
    with pytest.raises(LoraError, match="holds 30 tensors"):
        open_lora(put(tmp_path))


def test_a_whole_model_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """24 GB of FLUX.1 in the wrong folder would be twice that in main memory."""
    save_file(
        {f"double_blocks.{i}.img_attn.qkv.weight": torch.ones(9, 9) for i in range(9)}, tmp_path / "m.safetensors"
    )
    monkeypatch.setattr(open_file, "KEPT_BYTES", 100)
    monkeypatch.setattr(SafetensorsFile, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(LoraError, match=r"m\.safetensors: this is a whole model"):
        open_lora(str(tmp_path / "m.safetensors"))


def test_nothing_is_kept_of_a_file_that_is_refused(model, tmp_path):
    open_file._kept.clear()
    save_file({"unknown.lora_A.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(LoraError, match="none of its 1 keys fits"):
        apply_lora_file(model, str(tmp_path / "x.safetensors"), 0.5)
    assert not open_file._kept


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(LoraError, match=r"absent\.safetensors: there is no such file"):
        open_lora(str(tmp_path / "absent.safetensors"))


def test_names_of_other_bytes_are_shown():
    name = shown_name("/loras/latin-\udce9.safetensors")
    assert name == "latin-\ufffd.safetensors" and name.encode("utf-8")
