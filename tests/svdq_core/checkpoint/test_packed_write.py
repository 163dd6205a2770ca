"""This pack's own files: every number format comes back bit for bit, and int8 goes nowhere else but to bf16."""

import pytest
import torch
from checkpoint_files import TINY
from model_compare import differences

from svdquant_pack.kernels.part_weights import dequantize
from svdquant_pack.kernels.reference import requantize_int8
from svdquant_pack.svdq_core.apply_layer import dense_bias, dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.formats import FORMATS, QUANTIZED_FORMAT, quantized_format, save_model
from svdquant_pack.svdq_core.convert import convert
from svdquant_pack.svdq_core.errors import ArchitectureError, CheckpointError
from svdquant_pack.svdq_core.layer import Part, QuantizedLayer
from svdquant_pack.svdq_core.models import ARCHITECTURES
from svdquant_pack.svdq_core.quantize.spec import PRECISIONS


def in_int8(part: Part) -> Part:
    """The part with 8-bit codes."""
    codes, scales = requantize_int8(dequantize(part.tensors, part.scheme))
    return Part(
        "int8", part.rows, part.columns, part.act_unsigned, part.tensors | {"qweight": codes, "wscales": scales}
    )


def tiny(precision: str):
    if precision != "int8":
        return read_checkpoint(Checkpoint(TINY[precision]))
    model = read_checkpoint(Checkpoint(TINY["int4"]))
    for name, layer in model.layers.items():
        parts = tuple(part if part.scheme == "awq" else in_int8(part) for part in layer.parts)
        model.layers[name] = QuantizedLayer(layer.in_features, layer.out_features, parts, layer.bias)
    model.metadata.clear()
    return model


def write(path, model, to="svdquant"):
    save_model(path, model, FORMATS[to](model.architecture))
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_model_comes_back_bit_for_bit(precision, tmp_path):
    model = tiny(precision)
    checkpoint = Checkpoint(write(tmp_path / "x.safetensors", model))
    found = read_checkpoint(checkpoint)
    assert differences(found, model) == []
    assert found.precision == precision == checkpoint.metadata["svdquant_precision"]
    assert "ComfyUI-SVDQuant only" in checkpoint.metadata["svdquant_readers"]
    assert {key for key in found.metadata if key.startswith("svdquant_")} == {"svdquant_written_by"}


def test_what_is_worked_out_at_load_is_not_written(tmp_path):
    model = tiny("int4")
    plain = write(tmp_path / "a.safetensors", model).read_bytes()
    for layer in model.layers.values():
        for part in layer.parts:
            if part.scheme == "int4":
                part.tensors["channel_scales"] = torch.ones(part.out_features)
    assert write(tmp_path / "b.safetensors", model).read_bytes() == plain


@pytest.mark.parametrize("to", ["nunchaku", "comfy"])
def test_other_formats_refuse_int8_in_a_sentence(to, tmp_path):
    with pytest.raises(ArchitectureError, match=r"8-bit weights.*Write svdquant or bf16"):
        write(tmp_path / "x.safetensors", tiny("int8"), to)
    assert not list(tmp_path.iterdir())


def test_int8_to_bf16_is_the_dense_model(tmp_path):
    model = tiny("int8")
    convert(write(tmp_path / "x.safetensors", model), tmp_path / "y.safetensors", "bf16")
    dense = Checkpoint(tmp_path / "y.safetensors")
    for name, layer in model.layers.items():
        assert torch.equal(dense[f"{name}.weight"], dense_weight(layer).bfloat16())
        assert torch.equal(dense[f"{name}.bias"], dense_bias(layer).bfloat16())


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_by_way_of_this_format_nothing_is_lost(precision, tmp_path):
    convert(TINY[precision], tmp_path / "x.safetensors", "svdquant")
    convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", "nunchaku")
    assert differences(tiny(precision), read_checkpoint(Checkpoint(tmp_path / "y.safetensors"))) == []


@pytest.mark.parametrize("name", ["flux", "flux2", "qwen_image"])
def test_quantized_files_have_the_layout_of_published_ones(name):
    """Also where that joins Linears: those of one input are quantized together and share their smoothing."""
    assert quantized_format(ARCHITECTURES[name], "int4") == "nunchaku"
    assert quantized_format(ARCHITECTURES[name], "int8") == "svdquant"


def test_every_precision_has_a_format():
    assert QUANTIZED_FORMAT.keys() == set(PRECISIONS)
    assert set(QUANTIZED_FORMAT.values()) <= FORMATS.keys()


@pytest.mark.parametrize("name", ["qweight", "wscales"])
def test_a_wrong_shape_is_named(name, tmp_path):
    model = tiny("int8")
    layer = model.layers["double_blocks.0.img_attn.qkv"]
    layer.parts[0].tensors[name] = layer.parts[0][name][:-1]
    with pytest.raises(CheckpointError, match=rf"img_attn.qkv.*{name}"):
        read_checkpoint(Checkpoint(write(tmp_path / "x.safetensors", model)))
