"""Writing nunchaku files: what was read comes out again, byte for byte."""

import json

import pytest
import torch
from checkpoint_files import TINY, fingerprint, read_tensors, write_pixart, write_tensors

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint, save_tensors, to_nunchaku

METADATA_KEYS = {"config", "comfy_config", "model_class", "quantization_config"}


def prints(tensors):
    return {name: fingerprint(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("precision", TINY)
def test_a_file_comes_back_byte_for_byte(precision, tmp_path):
    tensors, metadata = to_nunchaku(read_checkpoint(Checkpoint(TINY[precision])))
    save_tensors(tmp_path / "again.safetensors", tensors, metadata)
    again, metadata_again = read_tensors(tmp_path / "again.safetensors")
    original, metadata_before = read_tensors(TINY[precision])
    assert prints(again) == prints(original)
    assert {k: json.loads(v) for k, v in metadata_again.items() if k != "model_class"} == {
        k: json.loads(v) for k, v in metadata_before.items() if k != "model_class"
    }


def test_pixart_comes_back_byte_for_byte(tmp_path):
    path = write_pixart(tmp_path / "x.safetensors")
    tensors, _ = to_nunchaku(read_checkpoint(Checkpoint(path)))
    assert prints(tensors) == prints(read_tensors(path)[0])


def test_bits_that_arithmetic_would_lose_come_back(tmp_path):
    """Modulation biases of which 1 cannot be taken off and put back; a bias of -0.0 on the signed half of linear2."""
    tensors, metadata = read_tensors(TINY["int4"])
    bias = tensors["transformer_blocks.0.norm1.linear.bias"]
    bias[:12] = torch.tensor([1e-9, -0.0, 3.0, -1e-30] * 3).bfloat16()
    tensors["single_transformer_blocks.0.out_proj.bias"].fill_(-0.0)
    path = write_tensors(tmp_path / "x.safetensors", tensors, metadata)
    assert prints(to_nunchaku(read_checkpoint(Checkpoint(path)))[0]) == prints(tensors)


def test_a_lora_in_the_branches_comes_back(tmp_path):
    """nunchaku keeps the one of a modulation layer in plain order, its rows interleaved like the weight's."""
    tensors, metadata = read_tensors(TINY["int4"])
    tensors["transformer_blocks.0.norm1.linear.lora_down"] = torch.randn(16, 256).bfloat16()
    rows = torch.randn(1536, 16).bfloat16()
    stored = torch.stack([rows[256 * c + j] for j in range(256) for c in range(6)])
    tensors["transformer_blocks.0.norm1.linear.lora_up"] = stored
    path = write_tensors(tmp_path / "x.safetensors", tensors, metadata)
    model = read_checkpoint(Checkpoint(path))
    part = model.layers["double_blocks.0.img_mod.lin"].parts[0]
    assert part["proj_down"].shape == (256, 16)
    assert torch.equal(part["proj_up"], rows)
    assert prints(to_nunchaku(model)[0]) == prints(tensors)


@pytest.mark.parametrize("precision", TINY)
def test_metadata_is_made_from_the_tensors(precision):
    """Without the file's own metadata the same geometry comes out."""
    model = read_checkpoint(Checkpoint(TINY[precision]))
    before = {key: model.metadata[key] for key in METADATA_KEYS}
    model.metadata.clear()
    _, metadata = to_nunchaku(model)
    assert metadata.keys() == METADATA_KEYS and metadata["model_class"] == before["model_class"]
    for key in ("comfy_config", "quantization_config"):
        assert json.loads(metadata[key]) == json.loads(before[key])
    made, original = json.loads(metadata["config"]), json.loads(before["config"])
    assert {k: v for k, v in original.items() if k != "_diffusers_version"} == made


def test_the_rank_in_the_metadata_is_that_of_the_tensors():
    model = read_checkpoint(Checkpoint(TINY["int4"]))
    model.metadata["quantization_config"] = json.dumps({"rank": 7})
    assert json.loads(to_nunchaku(model)[1]["quantization_config"])["rank"] == 32
