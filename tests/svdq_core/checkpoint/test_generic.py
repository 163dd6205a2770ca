"""A model that nobody has described, under ComfyUI's names: read, and written again, by what is in the file alone."""

import pytest
import torch
from checkpoint_files import write_tensors
from family_files import flux2

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.formats import FORMATS, save_model
from svdquant_pack.svdq_core.errors import ArchitectureError, CheckpointError
from svdquant_pack.svdq_core.models.others import generic_family
from svdquant_pack.svdq_core.quantized_model import QuantizedModel
from svdquant_pack.svdq_core.stack import same_bits

NAMES = {"img_attn.qkv": "self_attn.q", "img_mlp.2": "ffn.2"}


@pytest.fixture
def wan(tmp_path):
    """Two layers of a file, called as in Wan, one with a bias, and something in 16 bits."""
    source = read_checkpoint(Checkpoint(write_tensors(tmp_path / "a.safetensors", flux2("int4").tensors)))
    model = QuantizedModel(generic_family("Wan"))
    for old, new in NAMES.items():
        model.layers[f"blocks.0.{new}"] = source.layers[f"double_blocks.0.{old}"]
    model.plain = {f"blocks.0.self_attn.{n}": torch.ones(4) for n in ("norm_q.weight", "norm_k.weight")}
    return model


@pytest.mark.parametrize("form", ["svdquant", "comfy"])
def test_it_comes_back_as_it_was(wan, form, tmp_path):
    save_model(tmp_path / "b.safetensors", wan, FORMATS[form](wan.architecture))
    model = read_checkpoint(Checkpoint(tmp_path / "b.safetensors"))
    assert model.architecture.generic and model.layers.keys() == wan.layers.keys()
    assert model.plain.keys() == wan.plain.keys()
    for name, layer in wan.layers.items():
        parts = zip(layer.parts, model.layers[name].parts, strict=True)
        for ours, theirs in parts:
            names = set(ours.tensors) - {"smooth_factor_orig"}  # which comfy-native leaves out where it says nothing
            assert all(same_bits(ours[n], theirs[n]) for n in names)


def test_it_has_a_dense_form(wan, tmp_path):
    save_model(tmp_path / "b.safetensors", wan, FORMATS["bf16"](wan.architecture))
    assert "blocks.0.ffn.2.weight" in Checkpoint(tmp_path / "b.safetensors")


def test_it_has_no_nunchaku_form(wan, tmp_path):
    with pytest.raises(ArchitectureError, match="would name the layers of a Wan model is not known"):
        save_model(tmp_path / "b.safetensors", wan, FORMATS["nunchaku"](wan.architecture))


def test_damage_is_found(wan, tmp_path):
    save_model(tmp_path / "b.safetensors", wan, FORMATS["svdquant"](wan.architecture))
    tensors = {name: Checkpoint(tmp_path / "b.safetensors")[name] for name in Checkpoint(tmp_path / "b.safetensors")}
    cut = tensors | {"blocks.0.ffn.2.weight": tensors["blocks.0.ffn.2.weight"][:-64].clone()}
    with pytest.raises(CheckpointError, match="its layout does not fit its weight"):
        read_checkpoint(Checkpoint(write_tensors(tmp_path / "c.safetensors", cut)))


def test_names_with_and_without_a_prefix_are_refused(wan, tmp_path):
    """A stray tensor keeps the prefix of the others from being taken off; they are no names of ComfyUI then."""
    save_model(tmp_path / "b.safetensors", wan, FORMATS["svdquant"](wan.architecture))
    written = Checkpoint(tmp_path / "b.safetensors")
    tensors = {f"diffusion_model.{name}": written[name] for name in written}
    model = read_checkpoint(Checkpoint(write_tensors(tmp_path / "c.safetensors", tensors)))
    assert model.layers.keys() == wan.layers.keys()
    with pytest.raises(CheckpointError, match="others have none"):
        read_checkpoint(Checkpoint(write_tensors(tmp_path / "d.safetensors", tensors | {"extra": torch.ones(3)})))
