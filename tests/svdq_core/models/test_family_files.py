"""Every family's files become ComfyUI's dense weights; nothing is lost on the way through any format."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import write_tensors
from compressor_files import complete_h3
from family_asserts import assert_file
from family_files import FamilyFile, chroma, ernie, flux2, minimax_h3, qwen_image, sdxl

from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint, wanted_second_file
from svdquant_pack.svdq_core.checkpoint.formats import FORMATS, save_model
from svdquant_pack.svdq_core.convert import convert
from svdquant_pack.svdq_core.errors import ArchitectureError, CheckpointError
from svdquant_pack.svdq_core.models import CHROMA
from svdquant_pack.svdq_core.quantized_model import QuantizedModel
from svdquant_pack.svdq_core.stack import same_bits

MAKERS = {
    "flux2": flux2,
    "chroma spooknik": lambda precision: chroma(precision, tonera=False),
    "chroma tonera": lambda precision: chroma(precision, tonera=True),
    "sdxl": sdxl,
    "ernie": ernie,
    "minimax_h3": minimax_h3,
    "minimax_h3 with names of ComfyUI": lambda precision: minimax_h3(precision, host_named=True),
    "minimax_h3 of diffuse-compressor": complete_h3,
    "qwen_image": qwen_image,
    "qwen_image, modulation w4a4": lambda precision: qwen_image(precision, "svdq"),
    "qwen_image, modulation plain": lambda precision: qwen_image(precision, "plain"),
}


def read(file: FamilyFile, folder: Path, name: str = "model.safetensors", **changes) -> QuantizedModel:
    path = write_tensors(folder / name, file.tensors | changes)
    base = write_tensors(folder / "base.safetensors", file.base) if file.base else None
    return read_checkpoint(Checkpoint(path, base))


def differences(left: QuantizedModel, right: QuantizedModel) -> list[str]:
    found = [n for n in left.plain if n not in right.plain or not torch.equal(left.plain[n], right.plain[n])]
    assert left.layers.keys() == right.layers.keys()
    for name, layer in left.layers.items():
        other = right.layers[name]
        if layer.input != other.input or len(layer.parts) != len(other.parts):
            found.append(name)
            continue
        pairs = [(p.tensors, q.tensors) for p, q in zip(layer.parts, other.parts, strict=True)]
        pairs.append(({"b": layer.bias}, {"b": other.bias}) if layer.bias is not None else ({}, {}))
        for ours, theirs in pairs:
            found += [f"{name} {n}" for n, t in ours.items() if n not in theirs or not same_bits(t, theirs[n])]
    return found


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_file_becomes_the_dense_model(make, precision, tmp_path):
    file = make(precision)
    assert_file(read(file, tmp_path), file)


@pytest.mark.parametrize("to", ["nunchaku", "svdquant", "comfy"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_nothing_is_lost_through_a_format(make, to, tmp_path):
    file = make("int4")
    model = read(file, tmp_path)
    if to == "nunchaku" and "modulation w4a4" in str([k for k, m in MAKERS.items() if m is make]):
        with pytest.raises(ArchitectureError, match="holds this layer as AWQ W4A16 only"):
            save_model(tmp_path / "out.safetensors", model, FORMATS[to](model.architecture))
        return
    save_model(tmp_path / "out.safetensors", model, FORMATS[to](model.architecture))
    again = read_checkpoint(Checkpoint(tmp_path / "out.safetensors"))
    if to == "comfy":  # which leaves it out where it equals smooth_factor
        for part in (part for layer in model.layers.values() for part in layer.parts):
            part.tensors.pop("smooth_factor_orig", None)
    assert again.architecture.name == model.architecture.name
    assert differences(model, again) == []


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_nunchaku_file_comes_out_as_it_went_in(make, tmp_path):
    """Tensor for tensor: pieces of one source are joined, halves go back."""
    file = make("nvfp4")
    model = read(file, tmp_path)
    if any(part.scheme == "nvfp4" and name.endswith("_mod.1") for name, x in model.layers.items() for part in x.parts):
        pytest.skip("nunchaku has no W4A4 modulation")
    save_model(tmp_path / "out.safetensors", model, FORMATS["nunchaku"](model.architecture))
    out = Checkpoint(tmp_path / "out.safetensors")
    assert [n for n, t in file.tensors.items() if n not in out or not same_bits(out[n], t)] == []


def test_halves_that_are_not_swapped_are_noticed():
    """Were the family's swap forgotten, the truth would not be met: the test above can fail."""
    file = minimax_h3("int4")
    weight = file.weights["blocks.0.mlp.fc1"]
    half = len(weight) // 2
    assert np.abs(weight[:half] - weight[half:]).max() > 0.1


class TestSecondFile:
    def test_its_absence_is_said(self, tmp_path):
        path = write_tensors(tmp_path / "h3.safetensors", minimax_h3("int4").tensors)
        with pytest.raises(CheckpointError, match=r"quantized layers of MiniMax H3 only\. Give as second file"):
            read_checkpoint(Checkpoint(path))

    def test_another_model_of_the_same_shapes_is_refused(self, tmp_path):
        file = minimax_h3("int4")
        for name in list(file.base):
            if name.endswith(("proj.weight", "fc1.weight", "fc2.weight")):
                file.base[name] = torch.randn_like(file.base[name].float()).bfloat16()
        with pytest.raises(CheckpointError, match="of two models: take the second file of the model"):
            read(file, tmp_path)

    def test_the_pruned_form_is_taken(self, tmp_path):
        file = minimax_h3("int4")
        for name in [n for n in file.base if n.startswith("time_embedder.")]:
            del file.base[name], file.plain[name]
        file.base["adaln_t_table"] = file.plain["adaln_t_table"] = torch.ones(17, 16)
        assert_file(read(file, tmp_path), file)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda base: base.pop("blocks.0.norm1.weight"), "1 tensors are missing"),
            (
                lambda base: base.update({"condition_proj.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn)}),
                "expected BF16 or F16 or F32",
            ),
        ],
    )
    def test_what_is_wrong_with_it_is_said(self, change, sentence, tmp_path):
        file = minimax_h3("int4")
        change(file.base)
        with pytest.raises(CheckpointError, match=sentence):
            read(file, tmp_path)

    def test_it_is_asked_for(self, tmp_path):
        path = write_tensors(tmp_path / "h3.safetensors", minimax_h3("int4").tensors)
        assert "minimax_h3_fl2va_pruned_bf16.safetensors" in wanted_second_file(Checkpoint(path))
        assert wanted_second_file(Checkpoint(write_tensors(tmp_path / "f.safetensors", flux2("int4").tensors))) == ""

    def test_both_files_are_converted_to_one(self, tmp_path):
        file = minimax_h3("int4")
        base = write_tensors(tmp_path / "base.safetensors", file.base)
        convert(
            write_tensors(tmp_path / "h3.safetensors", file.tensors), tmp_path / "o.safetensors", "comfy", base=base
        )
        assert_file(read_checkpoint(Checkpoint(tmp_path / "o.safetensors")), file)
        with pytest.raises(CheckpointError, match="Leave the second file empty"):
            read_checkpoint(Checkpoint(tmp_path / "o.safetensors", base))

    def test_a_complete_file_needs_none(self, tmp_path):
        file = flux2("int4")
        file.base = {"anything": torch.zeros(2)}
        with pytest.raises(CheckpointError, match="Leave the second file empty"):
            read(file, tmp_path)


class TestEdit2511:
    @pytest.mark.parametrize(
        ("name", "there"), [("qwen-image-edit-2511.safetensors", True), ("qwen.safetensors", False)]
    )
    def test_the_name_tells_where_the_config_does_not(self, name, there, tmp_path):
        model = read(qwen_image("int4"), tmp_path, name)
        assert ("__index_timestep_zero__" in model.plain) is there

    def test_a_tensor_of_the_file_is_kept(self, tmp_path):
        model = read(qwen_image("int4"), tmp_path, __index_timestep_zero__=torch.empty(0))
        assert model.plain["__index_timestep_zero__"].numel() == 0


def test_chroma_under_nunchakus_newer_names(tmp_path):
    """A newer name of a norm looks like the other publisher's, and is not."""
    file = chroma("int4", tonera=False)
    for block, table in CHROMA.newer_names.items():
        for older, newer in table.items():
            end = "" if older.endswith(".weight") else "."
            old, new = f"{block}.0.{older}{end}", f"{block}.0.{newer}{end}"
            file.tensors = {n.replace(old, new) if n.startswith(old) else n: t for n, t in file.tensors.items()}
    assert "transformer_blocks.0.attn.norm_q.weight" in file.tensors
    assert_file(read(file, tmp_path), file)


class TestPieces:
    def test_pieces_read_one_input(self, tmp_path):
        model = read(qwen_image("int4"), tmp_path)
        layers = [model.layers[f"transformer_blocks.0.attn.to_{n}"] for n in "qkv"]
        assert {layer.input for layer in layers} == {"transformer_blocks.0.attn.to_qkv"}
        assert model.layers["transformer_blocks.0.attn.to_out.0"].input == ""
        for name in ("smooth_factor", "proj_down"):
            assert len({layer.parts[0][name].float().sum().item() for layer in layers}) == 1

    def test_the_name_of_the_input_travels_in_the_blob(self, tmp_path):
        layer = read(qwen_image("int4"), tmp_path).layers["transformer_blocks.0.attn.to_k"]
        blob, layout = to_blob(layer)
        assert type(layout).from_json(layout.to_json()).read(blob).input == layer.input != ""

    def test_a_piece_alone_cannot_be_written(self, tmp_path):
        model = read(qwen_image("int4"), tmp_path)
        dense = dense_weight(model.layers["transformer_blocks.0.attn.to_k"])
        del model.layers["transformer_blocks.0.attn.to_k"]
        model.plain["transformer_blocks.0.attn.to_k.weight"] = dense
        with pytest.raises(ArchitectureError, match=r"only attn\.to_q, attn\.to_v are quantized"):
            save_model(tmp_path / "o.safetensors", model, FORMATS["nunchaku"](model.architecture))

    def test_a_source_that_does_not_split_is_refused(self, tmp_path):
        file = qwen_image("int4")
        name = "transformer_blocks.0.attn.to_qkv"
        for key, tensor in file.packer.layer(2 * 128, 128).named(name, True).items():
            file.tensors[key] = tensor
        with pytest.raises(CheckpointError, match="do not split into"):
            read(file, tmp_path)


class TestMisreading:
    """Each mistake that a table could make is either noticed while reading, or changes weights that tests compare."""

    @pytest.mark.parametrize("tonera", [False, True])
    def test_unsigned_for_signed_is_told_by_the_bias(self, tonera, tmp_path):
        file = chroma("int4", tonera)
        named = {".norm_": ".attn.norm_"} if not tonera else {".attn.norm_": ".norm_"}
        for old, new in named.items():
            file.tensors = {name.replace(old, new): tensor for name, tensor in file.tensors.items()}
        with pytest.raises(CheckpointError, match=r"and its bias says (un)?signed"):
            read(file, tmp_path)

    def test_interleaved_modulation_is_not_taken_for_plain(self, tmp_path):
        """Without smooth_factor_orig a file looks like diffusers' Nunchaku Lite, whose modulation is in plain order."""
        file = qwen_image("int4")
        file.tensors = {name: t for name, t in file.tensors.items() if not name.endswith("_orig")}
        assert_file(read(file, tmp_path), file)

    def test_swapped_halves_change_the_weights(self, tmp_path):
        file = minimax_h3("nvfp4")
        name = "transformer_blocks.0.ff.net.0.proj"
        layer = {key: tensor for key, tensor in file.tensors.items() if key.startswith(f"{name}.")}
        for key in (f"{name}.qweight", f"{name}.lora_up"):
            file.tensors[key] = torch.cat(layer[key].chunk(2)[::-1])
        with pytest.raises((AssertionError, CheckpointError)):
            assert_file(read(file, tmp_path), file)

    def test_a_w4a4_layer_in_place_of_a_modulation_is_seen(self, tmp_path):
        model = read(qwen_image("int4", "svdq"), tmp_path)
        assert model.layers["transformer_blocks.0.img_mod.1"].parts[0].scheme == "int4"
        assert not model.layers["transformer_blocks.0.img_mod.1"].parts[0].act_unsigned
