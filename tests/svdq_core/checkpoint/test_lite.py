"""Nunchaku Lite: modules on their own, no unsigned activations, modulation as it is; recognised by what it is."""

import json
import shutil

import pytest
import torch
from checkpoint_files import TINY, read_tensors, write_pixart, write_tensors
from compare import assert_same
from lite_folders import DOUBLE, PROJ_OUT, lite_pixart_tensors, lite_tensors, write_lite
from model_compare import differences

from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError


@pytest.mark.parametrize("precision", TINY)
def test_modules_are_stacked_to_the_hosts_layers(precision, tmp_path):
    model = read_checkpoint(Checkpoint(write_lite(tmp_path / "lite", lite_tensors(precision))))
    tiny = read_checkpoint(Checkpoint(TINY[precision]))
    assert model.layers.keys() == tiny.layers.keys() and model.plain.keys() == tiny.plain.keys()
    assert [
        len(model.layers[f"{name}"].parts) for name in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1")
    ] == [3, 4]
    for name, layer in model.layers.items():
        if name != "single_blocks.0.linear2":
            assert_same(dense_weight(layer), dense_weight(tiny.layers[name]))
    (whole,) = model.layers["single_blocks.0.linear2"].parts
    assert whole.columns == (0, 1280)


def test_nothing_is_unsigned_although_it_stands_behind_a_gelu(tmp_path):
    """By role and precision alone the second MLP layers would be."""
    model = read_checkpoint(Checkpoint(write_lite(tmp_path / "lite", lite_tensors())))
    assert not any(part.act_unsigned for layer in model.layers.values() for part in layer.parts)


def test_modulation_is_neither_interleaved_nor_raised(tmp_path):
    tensors = lite_tensors()
    model = read_checkpoint(Checkpoint(write_lite(tmp_path / "lite", tensors)))
    layer = model.layers["double_blocks.0.img_mod.lin"]
    assert torch.equal(layer.bias, tensors[f"{DOUBLE}norm1.linear.bias"].float())
    assert_same(layer.parts[0]["wscales"], tensors[f"{DOUBLE}norm1.linear.wscales"])


def forms(tmp_path):
    """The same model in every form it comes in, and what tells that it is of this kind."""
    tensors = lite_tensors()
    folder = write_lite(tmp_path / "folder", tensors)
    yield "folder", folder
    yield "shards", write_lite(tmp_path / "shards", tensors, shards=3)
    shutil.copytree(folder, tmp_path / "pipeline" / "transformer")
    yield "pipeline", tmp_path / "pipeline"
    yield "file beside its config", folder / "diffusion_pytorch_model.safetensors"
    manifest = json.dumps({"runtime_manifest": {"schema": "nunchaku_lite.runtime_manifest", "version": 1}})
    yield "manifest", write_tensors(tmp_path / "m.safetensors", tensors, {"quantization_config": manifest})
    yield "names alone", write_tensors(tmp_path / "n.safetensors", tensors)


def test_every_form_gives_the_same_model(tmp_path):
    found = list(forms(tmp_path))
    first = read_checkpoint(Checkpoint(found[0][1]))
    for name, path in found[1:]:
        assert differences(first, read_checkpoint(Checkpoint(path))) == [], name
    assert "quantization_config" not in first.metadata and "nunchaku_lite" not in first.metadata["config"]


def test_a_config_that_speaks_of_another_file_is_ignored(tmp_path):
    """A folder of models may hold any config.json."""
    shutil.copy(TINY["int4"], tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "num_layers": 19,
                "quantization_config": {
                    "quant_method": "nunchaku_lite",
                    "svdq_w4a4": {"targets": ["transformer_blocks.0.attn.to_q"]},
                },
            }
        )
    )
    model = read_checkpoint(Checkpoint(tmp_path / "x.safetensors"))
    assert model.layers["double_blocks.0.img_mlp.2"].parts[0].act_unsigned


def test_fused_projections_are_read_too(tmp_path):
    """With fused layers only the missing smooth_factor_orig tells this kind from nunchaku's."""
    tensors, _ = read_tensors(TINY["int4"])
    names = {"qkv_proj": "attn.to_qkv", "qkv_proj_context": "attn.to_added_qkv"}
    tensors = lite_tensors() | {
        f"{DOUBLE}{new}.{end}": tensors[f"{DOUBLE}{old}.{was}"].clone()
        for old, new in names.items()
        for end, was in (
            ("qweight", "qweight"),
            ("wscales", "wscales"),
            ("bias", "bias"),
            ("smooth_factor", "smooth"),
            ("proj_down", "lora_down"),
            ("proj_up", "lora_up"),
        )
    }
    tensors = {
        n: t
        for n, t in tensors.items()
        if not n.startswith((f"{DOUBLE}attn.to_q.", f"{DOUBLE}attn.to_k.", f"{DOUBLE}attn.to_v.", f"{DOUBLE}attn.add_"))
    }
    model = read_checkpoint(Checkpoint(write_lite(tmp_path / "lite", tensors)))
    assert len(model.layers["double_blocks.0.img_attn.qkv"].parts) == 1


def test_plain_modules_stay_in_16_bits(tmp_path):
    tensors = lite_tensors()
    for name in [n for n in tensors if n.startswith(PROJ_OUT)]:
        del tensors[name]
    tensors |= {
        f"{PROJ_OUT}.weight": torch.randn(256, 1280).bfloat16(),
        f"{PROJ_OUT}.bias": torch.randn(256).bfloat16(),
    }
    model = read_checkpoint(Checkpoint(write_lite(tmp_path / "lite", tensors)))
    assert_same(model.plain["single_blocks.0.linear2.weight"], tensors[f"{PROJ_OUT}.weight"])


def test_a_pixart_is_read_module_by_module(tmp_path):
    packed = write_pixart(tmp_path / "pixart.safetensors")
    folder = write_lite(tmp_path / "lite", lite_pixart_tensors(packed))
    model, expected = read_checkpoint(Checkpoint(folder)), read_checkpoint(Checkpoint(packed))
    assert model.architecture.name == "pixart"
    assert model.layers.keys() == expected.layers.keys() and model.plain.keys() == expected.plain.keys()
    assert len(model.layers["blocks.0.attn.qkv"].parts) == 3
    for name, layer in model.layers.items():
        assert_same(dense_weight(layer), dense_weight(expected.layers[name]))
        assert not any(part.act_unsigned for part in layer.parts)
    for name, tensor in model.plain.items():
        assert_same(tensor, expected.plain[name])


def diffuse_compressor_config(layout):
    """What diffuse-compressor writes about a layer, shortened."""
    target = {"name": "a", "export_name": f"{DOUBLE}attn.to_q", "runtime_tensor_layout": layout}
    weight = {"dtype": "int4", "group_size": 64, "scale_dtypes": [None]}
    return json.dumps({"method": "svdquant", "rank": 32, "weight": weight, "targets": [target]})


@pytest.mark.parametrize("place", ["metadata", "sidecar"])
def test_tensors_that_are_not_in_tiles_are_refused(place, tmp_path):
    """They have the names and shapes of tensors in tiles: read as such they would be noise."""
    tensors, path = lite_tensors(), tmp_path / "x.safetensors"
    for layout in ("nunchaku_packed", "logical"):
        text = diffuse_compressor_config(layout)
        write_tensors(path, tensors, {"quantization_config": text} if place == "metadata" else None)
        if place == "sidecar":
            (tmp_path / "x.config.yaml").write_text(text)
        if layout == "nunchaku_packed":
            assert read_checkpoint(Checkpoint(path)).layers
            continue
        with pytest.raises(CheckpointError, match=r"x\.safetensors: .*attn\.to_q is in diffuse-compressor's logical"):
            read_checkpoint(Checkpoint(path))


@pytest.mark.parametrize("text", ["a: 1", "[]", '{"targets": 3}', '{"targets": [3]}', "[" * 100_000])
def test_another_config_beside_a_file_is_ignored(text, tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", lite_tensors())
    (tmp_path / "x.config.yaml").write_text(text)
    assert read_checkpoint(Checkpoint(path)).layers


def drop(prefix):
    return lambda t: [t.pop(n) for n in list(t) if n.startswith(prefix)]


DAMAGE = {
    "a module of three": (drop(f"{DOUBLE}attn.to_k."), "only some of them are quantized"),
    "no bias": (drop(f"{DOUBLE}ff.net.2.bias"), "bias is missing"),
    "half a branch": (drop(f"{PROJ_OUT}.proj_up"), "proj_up is missing"),
    "a stranger": (lambda t: t.update(extra=torch.ones(1)), "unexpected tensor: extra"),
    "a block": (drop("single_transformer_blocks."), "0 single_blocks found, 1 announced"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(change, message, tmp_path):
    tensors = lite_tensors()
    change(tensors)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(Checkpoint(write_lite(tmp_path / "lite", tensors)))
    assert str(caught.value).startswith("lite: ") and message in str(caught.value)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "..", "a/b.safetensors", "..\\x.safetensors", ""])
def test_an_index_that_leads_out_of_the_folder_is_refused(name, tmp_path):
    folder = write_lite(tmp_path / "lite", lite_tensors(), shards=2)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="is no file of this folder"):
        Checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_named(text, tmp_path):
    folder = write_lite(tmp_path / "lite", lite_tensors(), shards=2)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Checkpoint(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = write_lite(tmp_path / "lite", lite_tensors(), shards=2)
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"lite/diffusion_pytorch_model-00002-of-00002\.safetensors: there is no such"
    ):
        Checkpoint(folder)
