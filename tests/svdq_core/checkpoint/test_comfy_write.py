"""Writing comfy-native files: comfy-kitchen computes the same layers from them; what the format cannot hold is said."""

import json

import pytest
import torch
from checkpoint_files import TINY, fingerprint, read_tensors, write_pixart, write_tensors
from comfy_files import ComfyFile
from model_compare import differences

from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.comfy_write import ComfyFormat
from svdquant_pack.svdq_core.checkpoint.formats import save_model
from svdquant_pack.svdq_core.errors import ArchitectureError
from svdquant_pack.svdq_core.layer import with_tensors


def written(model, path):
    form = ComfyFormat(model.architecture)
    save_model(path, model, form)
    return read_tensors(path)[0], form.notes


def config(tensors, layer):
    return json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist()))


def prints(tensors):
    return {name: fingerprint(tensor) for name, tensor in tensors.items()}


@pytest.fixture
def tiny():
    return read_checkpoint(Checkpoint(TINY["int4"]))


def test_the_model_comes_back_bit_for_bit(tiny, tmp_path):
    path = tmp_path / "x.safetensors"
    tensors, notes = written(tiny, path)
    again = read_checkpoint(Checkpoint(path))
    for layer in tiny.layers.values():  # what equals the smoothing is not written and not read
        for part in layer.parts:
            part.tensors.pop("smooth_factor_orig", None)
    assert differences(tiny, again) == []
    assert len(notes) == 1 and "linear2 has signed and unsigned activations side by side" in notes[0]
    assert config(tensors, "single_blocks.0.linear2.parts.1")["act_unsigned"] is True
    assert "act_unsigned" not in config(tensors, "single_blocks.0.linear2.parts.0")


def test_original_smoothing_is_kept_where_it_differs(tiny, tmp_path):
    name = "double_blocks.0.img_attn.proj"
    (part,) = tiny.layers[name].parts
    part.tensors["smooth_factor_orig"] = 2 * part["smooth_factor"]
    tensors, _ = written(tiny, tmp_path / "x.safetensors")
    assert torch.equal(tensors[f"{name}.smooth_factor_orig"], 2 * part["smooth_factor"])
    assert sum(n.endswith("smooth_factor_orig") for n in tensors) == 1


@pytest.mark.parametrize(
    "layer", ["double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.0", "single_blocks.0.linear1"]
)
def test_comfy_kitchen_computes_the_same_layer(layer, tiny, tmp_path):
    """Its own layout class rebuilds the weight from the tensors of the file; linear1 is two of our parts in one."""
    kitchen = pytest.importorskip("comfy_kitchen.tensor.svdquant_w4a4", reason="comfy-kitchen is not installed")
    tensors, _ = written(tiny, tmp_path / "x.safetensors")
    stored = {end: tensors[f"{layer}.{end}"] for end in ("weight_scale", "proj_down", "proj_up", "smooth_factor")}
    qdata = tensors[f"{layer}.weight"]
    shape = (qdata.shape[0], qdata.shape[1] * 2)
    layout = kitchen.TensorCoreSVDQuantW4A4Layout
    params = layout.Params(
        scale=stored["weight_scale"],
        orig_dtype=torch.bfloat16,
        orig_shape=shape,
        proj_down=stored["proj_down"],
        proj_up=stored["proj_up"],
        smooth_factor=stored["smooth_factor"],
    )
    expected = dense_weight(tiny.layers[layer])
    weight = layout.dequantize(qdata, params).float()
    error = (weight - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
    assert error < 0.01  # bfloat16 inside, and an identity matrix quantized on the way


def test_awq_in_comfy_kitchens_words(tiny, tmp_path):
    kitchen = pytest.importorskip("comfy_kitchen.tensor.awq_w4a16", reason="comfy-kitchen is not installed")
    name = "double_blocks.0.img_mod.lin"
    tensors, _ = written(tiny, tmp_path / "x.safetensors")
    qdata = tensors[f"{name}.weight"]
    layout = kitchen.TensorCoreAWQW4A16Layout
    shape = (qdata.shape[0], qdata.shape[1] * 2)
    zeros, scale = tensors[f"{name}.weight_zero"].float(), tensors[f"{name}.weight_scale"].float()
    params = layout.Params(scale=scale, orig_dtype=torch.float32, orig_shape=shape, zeros=zeros)
    assert float((layout.dequantize(qdata, params) - dense_weight(tiny.layers[name])).abs().max()) < 1e-6


def test_default_zeros_become_the_scales(tiny, tmp_path):
    """Zero point 7 of the one format is nearly zero point 8 of the other plus one step."""
    tensors, _ = written(tiny, tmp_path / "x.safetensors")
    zero, scale = (tensors[f"double_blocks.0.img_mod.lin.weight_{end}"] for end in ("zero", "scale"))
    assert zero.dtype == scale.dtype == torch.bfloat16
    assert float(((zero - scale).float() / scale.float()).abs().max()) <= 8 * 2**-8  # -7 s was rounded once


def test_pixart_is_one_layer_for_each_linear(tmp_path):
    model = read_checkpoint(Checkpoint(write_pixart(tmp_path / "x.safetensors")))
    tensors, notes = written(model, tmp_path / "y.safetensors")
    assert notes == [] and not any(".parts." in name for name in tensors)
    assert config(tensors, "blocks.0.mlp.fc2")["act_unsigned"] is True


@pytest.mark.parametrize("family", ["flux", "pixart"])
def test_a_file_of_this_kind_comes_back(family, tmp_path):
    file = ComfyFile(family)
    first = file.write(tmp_path / "x.safetensors")
    tensors, _ = written(read_checkpoint(Checkpoint(first)), tmp_path / "y.safetensors")
    original = read_tensors(first)[0]
    assert prints(without_configs(tensors)) == prints(
        {name.replace("_norm.scale", "_norm.weight"): t for name, t in without_configs(original).items()}
    )
    assert all(config(tensors, name) == config(original, name) for name in file.configs)


def without_configs(tensors):
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("comfy_quant")}


def test_nvfp4_is_refused(tmp_path):
    model = read_checkpoint(Checkpoint(TINY["nvfp4"]))
    with pytest.raises(
        ArchitectureError, match="is NVFP4, and the comfy-native SVDQuant format holds 4-bit integers only"
    ):
        written(model, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_lora_on_a_modulation_layer_is_refused(tiny, tmp_path):
    name = "double_blocks.0.img_mod.lin"
    layer = tiny.layers[name]
    part = with_tensors(
        layer.parts[0], proj_down=torch.ones(256, 16).bfloat16(), proj_up=torch.ones(1536, 16).bfloat16()
    )
    tiny.layers[name] = type(layer)(256, 1536, (part,), layer.bias)
    with pytest.raises(ArchitectureError, match="carries a LoRA"):
        written(tiny, tmp_path / "x.safetensors")


def test_parts_of_different_smoothing_are_written_apart(tiny, tmp_path):
    layer = tiny.layers["single_blocks.0.linear1"]
    layer.parts[1].tensors["smooth_factor"] = 2 * layer.parts[1]["smooth_factor"]
    tensors, notes = written(tiny, tmp_path / "x.safetensors")
    assert "single_blocks.0.linear1.parts.1.weight" in tensors
    assert any("do not share their smoothing" in note for note in notes)
    again = read_checkpoint(Checkpoint(tmp_path / "x.safetensors")).layers["single_blocks.0.linear1"]
    assert torch.equal(dense_weight(again), dense_weight(layer))


def test_a_joined_layer_that_was_changed_since_is_read_whole(tiny, tmp_path):
    """Somebody may have added a LoRA to it; then its branches no longer act on their own rows only."""
    path = tmp_path / "x.safetensors"
    tensors, _ = written(tiny, path)
    tensors["single_blocks.0.linear1.proj_up"][0, -1] = 1
    layer = read_checkpoint(Checkpoint(write_tensors(path, tensors))).layers["single_blocks.0.linear1"]
    assert len(layer.parts) == 1 and layer.parts[0].rank == 64
