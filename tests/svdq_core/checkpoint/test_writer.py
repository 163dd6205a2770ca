"""What all writers share: writing nothing that only this pack reads."""

import pytest
from checkpoint_files import TINY, read_tensors, write_pixart, write_tensors
from comfy_files import ComfyFile
from dense_compare import assert_equivalent, prints

from svdquant_pack.svdq_core.convert import convert
from svdquant_pack.svdq_core.errors import ArchitectureError

NUNCHAKU_OWN = ("exact_", "signed_bias")


def extras(path):
    return [n for n in read_tensors(path)[0] if n.rpartition(".")[2].startswith(NUNCHAKU_OWN)]


def test_strict_writes_only_what_nunchaku_knows(tmp_path):
    """Signed second MLP layers and rounded biases are what it would keep beside the rest."""
    ComfyFile(unsigned=False).write(tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "all.safetensors", "nunchaku")
    convert(tmp_path / "a.safetensors", tmp_path / "strict.safetensors", "nunchaku", strict=True)
    assert extras(tmp_path / "all.safetensors") and not extras(tmp_path / "strict.safetensors")
    known = prints(tmp_path / "all.safetensors")
    for name in extras(tmp_path / "all.safetensors"):
        del known[name]
    assert prints(tmp_path / "strict.safetensors") == known
    assert_equivalent(tmp_path / "a.safetensors", tmp_path / "strict.safetensors", 0.1)  # bfloat16, as above


def test_strict_comfy_holds_what_comfy_names_and_refuses_the_rest(tmp_path):
    with pytest.raises(ArchitectureError, match=r"linear\d has .* Without --strict it is written as parts\.0 to 1"):
        convert(TINY["int4"], tmp_path / "c.safetensors", "comfy", strict=True)
    assert not (tmp_path / "c.safetensors").exists()
    source = write_pixart(tmp_path / "pixart.safetensors")
    tensors, metadata = read_tensors(source)
    original = next(n for n in tensors if n.endswith(".smooth_factor_orig"))
    tensors[original] = tensors[original] * 2  # where it differs it is kept, for the way back
    write_tensors(source, tensors, metadata)
    convert(source, tmp_path / "all.safetensors", "comfy")
    convert(source, tmp_path / "strict.safetensors", "comfy", strict=True)
    every, known = prints(tmp_path / "all.safetensors"), prints(tmp_path / "strict.safetensors")
    assert [n.rpartition(".")[2] for n in every.keys() - known.keys()] == ["smooth_factor_orig"]
    assert all(every[n] == known[n] for n in known if not n.endswith("comfy_quant"))
    assert_equivalent(source, tmp_path / "strict.safetensors")
