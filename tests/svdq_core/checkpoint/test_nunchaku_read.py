"""Reading nunchaku files: every tensor is what the files' generator started from, and what is wrong is said."""

import json

import pytest
import torch
from checkpoint_files import (
    TINY,
    fingerprint,
    host_dense_samples,
    newer_names,
    read_tensors,
    truth,
    write_legacy_folder,
    write_pixart,
    write_tensors,
)
from compare import assert_same

from svdquant_pack.kernels.packing import unpack_int4, unpack_uint4
from svdquant_pack.svdq_core import layouts
from svdquant_pack.svdq_core.apply_layer import dense_bias, dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError


def logical_tensors(model):
    """The blocks of a FLUX model in memory, in the names and shapes of the truth files."""
    found = {}
    for block in model.architecture.blocks:
        for linear in block.linears:
            layer = model.layers[f"{block.host}.0.{linear.host}"]
            for source, part in zip(linear.sources, layer.parts, strict=True):
                name = f"{block.source}.0.{source}"
                unpack = unpack_int4 if part.scheme == "int4" else unpack_uint4
                found[f"{name}.q"] = unpack(part["qweight"])
                found[f"{name}.wscales"] = (
                    part["wscales"].view(torch.uint8).T.contiguous().view(torch.float8_e4m3fn)
                    if part.scheme == "nvfp4"
                    else part["wscales"].T
                )
                if part.scheme == "awq":
                    found[f"{name}.wzeros"] = part["wzeros"].T
                    chunks = linear.modulation_chunks
                    found[f"{name}.bias_with_plus1"] = layouts.add_plus_one(layer.bias, chunks, torch.bfloat16)
                    continue
                for ours, theirs in (("smooth_factor", "smooth"), ("smooth_factor_orig", "smooth_orig")):
                    found[f"{name}.{theirs}"] = part[ours]
                found[f"{name}.lora_up"], found[f"{name}.lora_down"] = part["proj_up"], part["proj_down"].T
                found |= {f"{name}.{n}": part[n] for n in ("wtscale", "wcscales") if part.get(n) is not None}
                if linear.stack == "rows":
                    found[f"{name}.bias"] = layer.bias[slice(*part.rows)]
                else:
                    found[f"{name}.bias"] = layer.bias if part is layer.parts[-1] else torch.zeros_like(layer.bias)
        for host, (source,) in block.plain.items():
            found[f"{block.source}.0.{source}"] = model.plain[f"{block.host}.0.{host}"]
    return found


@pytest.mark.parametrize("precision", TINY)
def test_every_tensor_equals_the_truth(precision):
    found = logical_tensors(read_checkpoint(Checkpoint(TINY[precision])))
    expected = truth(precision)
    unstored = {name for name in expected if name.endswith("bias_without_plus1")}  # the file holds it with 1 added
    assert found.keys() == expected.keys() - unstored
    assert [name for name in found if fingerprint(found[name]) != expected[name]] == []


def test_dense_equivalent_equals_the_truth():
    model = read_checkpoint(Checkpoint(TINY["int4"]))
    dense = dict(model.plain)
    for name, layer in model.layers.items():
        dense[f"{name}.weight"], dense[f"{name}.bias"] = dense_weight(layer), dense_bias(layer)
    samples = host_dense_samples()
    assert samples.keys() == {name for name in dense if ".txt_" not in name}
    for name, (index, expected) in samples.items():
        difference = (dense[name].float().flatten()[index] - expected).abs().max()
        modulation = name.endswith(("mod.lin.bias", "modulation.lin.bias"))
        # a scale's bias was rounded to bfloat16 after 1 was added; elsewhere only the order of float32 sums differs
        assert difference <= (2**-8 if modulation else 2e-6 * max(1.0, float(expected.abs().max()))), name


def test_int4_layers_behind_a_gelu_are_unsigned_and_nvfp4_ones_are_not():
    behind = {"double_blocks.0.img_mlp.2", "double_blocks.0.txt_mlp.2", "single_blocks.0.linear2"}
    for precision in TINY:
        layers = read_checkpoint(Checkpoint(TINY[precision])).layers
        unsigned = {name for name, layer in layers.items() for part in layer.parts if part.act_unsigned}
        assert unsigned == (behind if precision == "int4" else set())
        if precision == "int4":
            assert [part.act_unsigned for part in layers["single_blocks.0.linear2"].parts] == [False, True]


def same_model(left, right):
    assert left.layers.keys() == right.layers.keys() and left.plain.keys() == right.plain.keys()
    for name, layer in left.layers.items():
        other = right.layers[name]
        assert_same(layer.bias, other.bias)
        for part, twin in zip(layer.parts, other.parts, strict=True):
            assert (part.scheme, part.rows, part.columns, part.act_unsigned) == (
                twin.scheme,
                twin.rows,
                twin.columns,
                twin.act_unsigned,
            )
            assert part.tensors.keys() == twin.tensors.keys()
            for key, tensor in part.tensors.items():
                assert fingerprint(tensor) == fingerprint(twin[key])
    for name, tensor in left.plain.items():
        assert_same(tensor, right.plain[name])


@pytest.mark.parametrize("precision", TINY)
def test_newer_names_give_the_same_model(precision, tmp_path):
    tensors, metadata = read_tensors(TINY[precision])
    names = newer_names(precision)
    renamed = {names.get(name, name): tensor for name, tensor in tensors.items()}
    path = write_tensors(tmp_path / "newer.safetensors", renamed, metadata)
    same_model(read_checkpoint(Checkpoint(path)), read_checkpoint(Checkpoint(TINY[precision])))


def test_legacy_folder_gives_the_same_model(tmp_path):
    model = read_checkpoint(Checkpoint(write_legacy_folder(tmp_path / "svdq-int4-flux.1-tiny")))
    same_model(model, read_checkpoint(Checkpoint(TINY["int4"])))
    assert json.loads(model.metadata["comfy_config"])["model_class"] == "Flux"


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer."])
def test_prefixes_are_ignored(prefix, tmp_path):
    tensors, metadata = read_tensors(TINY["int4"])
    path = write_tensors(tmp_path / "x.safetensors", {prefix + n: t for n, t in tensors.items()}, metadata)
    same_model(read_checkpoint(Checkpoint(path)), read_checkpoint(Checkpoint(TINY["int4"])))


def test_pixart_is_read_completely(tmp_path):
    model = read_checkpoint(Checkpoint(write_pixart(tmp_path / "x.safetensors")))
    assert model.architecture.name == "pixart" and len(model.layers) == 6
    assert model.layers["blocks.0.mlp.fc2"].parts[0].act_unsigned
    assert model.plain["blocks.0.cross_attn.kv_linear.weight"].shape == (256, 128)


def changed(tmp_path, change, precision="int4"):
    """The tiny file with its dict of tensors changed."""
    tensors, metadata = read_tensors(TINY[precision])
    change(tensors)
    return Checkpoint(write_tensors(tmp_path / "changed.safetensors", tensors, metadata))


QKV = "transformer_blocks.0.qkv_proj"
MOD = "transformer_blocks.0.norm1.linear"
FC2 = "single_transformer_blocks.0.mlp_fc2"


def with_value(name, value):
    def change(tensors):
        flat = tensors[name].view(torch.uint8) if tensors[name].element_size() == 1 else tensors[name]
        flat = flat.clone()
        flat.view(-1)[3 % flat.numel()] = value
        tensors[name] = flat.view(tensors[name].dtype)

    return change


def replaced(name, make):
    return lambda tensors: tensors.update({name: make(tensors[name])})


def removed(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def without_layer(layer):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(layer + ".")]


def moved(before, after):
    """Tensors whose names begin with `before`, copied to `after`."""
    return lambda tensors: tensors.update(
        {after + name.removeprefix(before): t.clone() for name, t in list(tensors.items()) if name.startswith(before)}
    )


def of_rank(rank):
    """The first columns of both factors of a layer."""
    names = [f"{QKV}.lora_down", f"{QKV}.lora_up"]
    return lambda tensors: tensors.update({name: tensors[name][:, :rank] for name in names})


DAMAGE = {
    "a layer without its scales": (removed(f"{QKV}.wscales"), "qkv_proj: wscales is missing"),
    "a layer without its smoothing": (removed(f"{QKV}.smooth"), "qkv_proj: smooth_factor is missing"),
    "half of the low-rank branch": (removed(f"{QKV}.lora_up"), "proj_up"),
    "the other half": (removed(f"{QKV}.lora_down"), "proj_down is missing"),
    "half of a split layer": (without_layer(FC2), "only some of them"),
    "a modulation layer without zeros": (removed(f"{MOD}.wzeros"), "wzeros is missing"),
    "no norm": (removed("transformer_blocks.0.norm_q.weight"), "1 missing tensor: transformer_blocks.0.norm_q.weight"),
    "no embedder": (removed("x_embedder.weight"), "1 missing tensor: x_embedder.weight"),
    "a stranger": (lambda t: t.update(extra=torch.zeros(3)), "1 unexpected tensor: extra"),
    "wscales cut": (replaced(f"{QKV}.wscales", lambda t: t[:2]), "wscales has shape (2, 768), expected (4, 768)"),
    "qweight cut": (replaced(f"{QKV}.qweight", lambda t: t[:700]), "qkv_proj.qweight is int8 (700, 128)"),
    "qweight of int16": (replaced(f"{QKV}.qweight", lambda t: t.view(torch.int16)), "qkv_proj.qweight is int16"),
    "scalar low-rank": (replaced(f"{QKV}.lora_up", lambda t: t[0, 0]), "proj_up"),
    "one-dimensional low-rank": (replaced(f"{QKV}.lora_up", lambda t: t[0]), "proj_up"),
    "low-rank of two ranks": (replaced(f"{QKV}.lora_down", lambda t: t[:, :16]), "proj_down has shape (256, 16)"),
    "a rank of 24": (of_rank(24), "the rank is 24, expected a multiple of 16"),
    "smoothing of int8": (replaced(f"{QKV}.smooth", lambda t: t.to(torch.int8)), "smooth_factor is int8, expected"),
    "NaN scale": (with_value(f"{QKV}.wscales", float("nan")), "qkv_proj: wscales holds NaN or infinite"),
    "infinite smoothing": (with_value(f"{QKV}.smooth", float("inf")), "smooth_factor holds NaN or infinite"),
    "smoothing by zero": (with_value(f"{QKV}.smooth", 0.0), "smooth_factor holds zeros"),
    "NaN in a modulation scale": (with_value(f"{MOD}.wscales", float("nan")), "norm1.linear: wscales holds NaN"),
    "NaN in a modulation bias": (with_value(f"{MOD}.bias", float("nan")), "norm1.linear: bias holds NaN"),
    "NaN in a bias": (with_value(f"{QKV}.bias", float("nan")), "bias holds NaN"),
    "NaN in a plain tensor": (with_value("x_embedder.weight", float("nan")), "x_embedder.weight holds NaN"),
    "modulation of int8": (replaced(f"{MOD}.qweight", lambda t: t.view(torch.int8)), "norm1.linear.qweight is int8"),
    "modulation scales cut": (replaced(f"{MOD}.wscales", lambda t: t[:2]), "norm1.linear.wscales has shape (2, 1536)"),
    "smoothing on a modulation": (
        lambda t: t.update({f"{MOD}.smooth": torch.ones(256)}),
        "unexpected tensor: transformer_blocks.0.norm1.linear.smooth",
    ),
    "a misshapen plain tensor": (
        replaced("x_embedder.weight", lambda t: t[:100]),
        "x_embedder.weight has 64 inputs and 100 outputs",
    ),
    "a plain tensor of int8": (replaced("proj_out.weight", lambda t: t.to(torch.int8)), "proj_out.weight is int8"),
    "a layer of other sizes": (
        moved("transformer_blocks.0.mlp_fc1.", "transformer_blocks.0.qkv_proj."),
        "qkv_proj has 256 inputs and 1024 outputs, expected 256 and 768",
    ),
    "a gap between blocks": (
        moved("transformer_blocks.0.", "transformer_blocks.2."),
        "3 double_blocks found, 1 announced",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(change, message, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(changed(tmp_path, change))
    assert str(caught.value).startswith("changed.safetensors: ")
    assert message in str(caught.value)


def test_nvfp4_scale_that_is_not_a_number_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="qkv_proj: wscales holds NaN"):
        read_checkpoint(changed(tmp_path, with_value(f"{QKV}.wscales", 0x7F), "nvfp4"))


def test_missing_tensors_are_listed_up_to_ten(tmp_path):
    def change(tensors):
        for name in [n for n in tensors if n.startswith(("time_text_embed", "x_embedder", "context_embedder"))]:
            if "guidance" not in name:
                del tensors[name]

    with pytest.raises(CheckpointError, match="12 missing tensors: ") as caught:
        read_checkpoint(changed(tmp_path, change))
    assert str(caught.value).count(".linear_") + str(caught.value).count("_embedder.") >= 10


def test_blocks_announced_and_absent_are_named(tmp_path):
    def change(tensors):
        for name in [n for n in tensors if n.startswith("single_transformer_blocks.")]:
            del tensors[name]

    with pytest.raises(CheckpointError, match="0 single_blocks found, 1 announced"):
        read_checkpoint(changed(tmp_path, change))


def test_no_low_rank_branch_is_rank_zero(tmp_path):
    model = read_checkpoint(changed(tmp_path, removed(f"{QKV}.lora_up", f"{QKV}.lora_down")))
    assert [part.rank for part in model.layers["double_blocks.0.img_attn.qkv"].parts] == [0]


@pytest.mark.parametrize("rank", [16, 48, 128, 256])
def test_ranks_come_from_the_tensors(rank, tmp_path):
    def change(tensors):
        for end, size in (("down", 256), ("up", 768)):
            tensors[f"{QKV}.lora_{end}"] = torch.randn(size, rank).bfloat16()

    model = read_checkpoint(changed(tmp_path, change))
    assert model.layers["double_blocks.0.img_attn.qkv"].parts[0].rank == rank
    assert model.layers["double_blocks.0.img_attn.proj"].parts[0].rank == 32
