"""diffuse-compressor's files: layers in nunchaku's tiles, under names of nunchaku's, ComfyUI's or diffusers' own."""

import json

import pytest
import torch
from checkpoint_files import TINY, read_tensors, write_tensors
from compressor_files import complete_h3, klein, scanned_krea2, without_originals
from family_asserts import assert_file
from family_files import qwen_image
from family_modules import lite
from fused_files import pixart

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint, wanted_second_file
from svdquant_pack.svdq_core.checkpoint.dense_read import DenseModel
from svdquant_pack.svdq_core.convert import convert

KINDS = {
    "H3, quantized layers called as in ComfyUI": lambda: complete_h3("nvfp4"),
    "H3, AdaLN in 16 bits": lambda: complete_h3("int4", adaln="plain"),
    "H3 under diffusers' names": lambda: complete_h3("int4", lite=True),
    "FLUX.2 under nunchaku's names": lambda: klein("nvfp4"),
    "Krea 2, every Linear": lambda: scanned_krea2("int4"),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_it_is_complete(make, tmp_path):
    file = make()
    checkpoint = Checkpoint(write_tensors(tmp_path / "x.safetensors", file.tensors))
    assert wanted_second_file(checkpoint) == ""
    assert_file(read_checkpoint(checkpoint), file)


def test_linears_of_blocks_that_others_leave_alone_go_into_our_own_format(tmp_path):
    file = scanned_krea2("int4")
    source = write_tensors(tmp_path / "x.safetensors", file.tensors)
    convert(source, tmp_path / "own.safetensors", "svdquant")
    assert_file(read_checkpoint(Checkpoint(tmp_path / "own.safetensors")), file)


def test_frequencies_follow_from_the_config(tmp_path):
    file = complete_h3("int4")
    config = json.dumps({"rope_freq_dim": 4, "rope_theta": 100.0})
    path = write_tensors(tmp_path / "x.safetensors", file.tensors, {"config": config})
    found = read_checkpoint(Checkpoint(path)).plain["rope.inv_freq"]
    assert torch.allclose(found, torch.tensor([1.0, 100**-0.25, 0.1, 100**-0.75]))


def test_flux_with_fused_layers_and_plain_modulation(tmp_path):
    """Its INT4 recipe quantizes no modulation, so nothing tells it from Nunchaku Lite but the names of its layers."""
    tensors, _ = read_tensors(TINY["int4"])
    whole = read_checkpoint(Checkpoint(TINY["int4"]))
    newer = {"smooth": "smooth_factor", "lora_down": "proj_down", "lora_up": "proj_up"}
    found = {}
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        if end == "smooth_orig" or f"{layer}.wzeros" in tensors:
            continue
        found[f"{layer}.{newer.get(end, end)}" if layer else name] = tensor
    modulations = {"norm1": "img_mod.lin", "norm1_context": "txt_mod.lin"}
    places = {f"transformer_blocks.0.{n}.linear": f"double_blocks.0.{host}" for n, host in modulations.items()}
    places |= {"single_transformer_blocks.0.norm.linear": "single_blocks.0.modulation.lin"}
    for source, host in places.items():
        rows = whole.layers[host].out_features
        found[f"{source}.weight"], found[f"{source}.bias"] = (
            torch.ones(rows, 256).bfloat16(),
            torch.ones(rows).bfloat16(),
        )
    model = read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", found)))
    assert model.layers["double_blocks.0.img_mlp.2"].parts[0].act_unsigned
    assert len(model.layers["single_blocks.0.linear2"].parts) == 2
    assert {f"{host}.weight" for host in places.values()} <= model.plain.keys()


def test_a_dense_h3_of_diffusers_has_its_frequencies(tmp_path):
    file = complete_h3("int4", lite=True, adaln="plain")
    tensors = {n: t for n, t in file.tensors.items() if f"{n.rpartition('.')[0]}.qweight" not in file.tensors}
    for host, weight in file.weights.items():
        kind, _, name = host.rpartition(".0.")
        source = {"token_refiner.blocks": "token_refiner.refiner_blocks", "blocks": "transformer_blocks"}[kind] + ".0."
        dense = torch.from_numpy(weight).bfloat16()
        if name == "attn.qkv_proj":
            parts = zip("qkv", dense.chunk(3), strict=True)
            tensors |= {f"{source}attn.to_{n}.weight": piece.contiguous() for n, piece in parts}
        elif name == "mlp.fc1":
            tensors[f"{source}ff.net.0.proj.weight"] = torch.cat(dense.chunk(2)[::-1])
        else:
            tensors[source + {"attn.out_proj": "attn.to_out.0", "mlp.fc2": "ff.net.2"}[name] + ".weight"] = dense
    model = DenseModel(Checkpoint(write_tensors(tmp_path / "dense.safetensors", tensors)))
    assert model.ignored == [] and set(model) == set(file.plain) | {f"{host}.weight" for host in file.weights}
    assert torch.allclose(model["rope.inv_freq"], file.plain["rope.inv_freq"])
    assert torch.equal(model["blocks.0.mlp.fc1.weight"], torch.from_numpy(file.weights["blocks.0.mlp.fc1"]).bfloat16())


@pytest.mark.parametrize(
    "make", [pixart, lambda precision: qwen_image(precision, "svdq")], ids=["pixart", "qwen_image"]
)
def test_the_bias_says_that_activations_are_unsigned(make, tmp_path):
    """Where neither names nor modulation tell nunchaku's layout from diffusers'."""
    file = without_originals(make("int4"))
    assert_file(read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", file.tensors))), file)


def test_and_that_they_are_signed(tmp_path):
    file = lite("pixart", "int4")
    model = read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", file.tensors)))
    assert not model.layers["blocks.0.mlp.fc2"].parts[0].act_unsigned
