"""comfy-native files: both spellings, both layouts, both places of the configs give the values they were made of."""

import pytest
import torch
from comfy_files import FLUX_LAYERS, FLUX_MODULATIONS, ComfyFile, H, json_tensor
from compare import assert_same

from svdquant_pack.kernels.packing import unpack_int4, unpack_uint4
from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError

QKV, FC2, MOD = "double_blocks.0.img_attn.qkv", "double_blocks.0.img_mlp.2", "double_blocks.0.img_mod.lin"


def check_values(model, file):
    for name, truth in file.truth.items():
        layer = model.layers[name]
        (part,) = layer.parts
        assert_same(layer.bias, truth["bias"])
        assert_same(part["wscales"], truth["scales"])
        if part.scheme == "awq":
            assert torch.equal(unpack_uint4(part["qweight"]), truth["q"].to(torch.uint8))
            dense = (truth["q"] - 8).float() * truth["scales"].float().T.repeat_interleave(64, 1)
            dense += truth["zeros"].float().T.repeat_interleave(64, 1)
            assert float((dense_weight(layer) - dense).abs().max()) < 1e-6  # another order of the same three numbers
            continue
        assert torch.equal(unpack_int4(part["qweight"]), truth["q"].to(torch.int8))
        for ours, theirs in (("smooth_factor", "smooth"), ("proj_down", "down"), ("proj_up", "up")):
            assert_same(part[ours], truth[theirs])


@pytest.mark.parametrize("spelling", ["comfy-quants", "comfy-kitchen"])
@pytest.mark.parametrize("tiled", [False, True], ids=["natural", "tiled"])
@pytest.mark.parametrize("family", ["flux", "pixart"])
def test_every_value_is_what_the_file_was_made_of(family, tiled, spelling, tmp_path):
    file = ComfyFile(family, spelling=spelling, tiled=tiled)
    model = read_checkpoint(Checkpoint(file.write(tmp_path / "x.safetensors")))
    assert model.architecture.name == family and model.layers.keys() == file.truth.keys()
    check_values(model, file)
    unsigned = {name for name, layer in model.layers.items() if layer.parts[0].act_unsigned}
    assert unsigned == {n for n in model.layers if n.endswith(("_mlp.2", ".fc2"))}
    if family == "flux":
        assert_same(
            model.plain["single_blocks.0.norm.key_norm.weight"], file.tensors["single_blocks.0.norm.key_norm.scale"]
        )


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_configs_may_stand_in_the_metadata(prefix, tmp_path):
    file = ComfyFile()
    model = read_checkpoint(Checkpoint(file.write(tmp_path / "x.safetensors", in_metadata=True, prefix=prefix)))
    check_values(model, file)
    assert "_quantization_metadata" not in model.metadata


def test_a_branch_behind_the_smoothing_is_brought_before_it(tmp_path):
    file = ComfyFile(basis="post_smoothing")
    part = read_checkpoint(Checkpoint(file.write(tmp_path / "x.safetensors"))).layers[QKV].parts[0]
    truth = file.truth[QKV]
    assert_same(part["proj_down"], (truth["down"].float() / truth["smooth"].float()[:, None]).bfloat16())


def test_the_basis_is_raw_where_nothing_is_said(tmp_path):
    file = ComfyFile(basis=None)
    check_values(read_checkpoint(Checkpoint(file.write(tmp_path / "x.safetensors"))), file)


@pytest.mark.parametrize("rank", [0, 8, 24])
def test_ranks_are_filled_up_with_zeros(rank, tmp_path):
    file = ComfyFile(rank=rank)
    part = read_checkpoint(Checkpoint(file.write(tmp_path / "x.safetensors"))).layers[QKV].parts[0]
    assert part.rank == -(-rank // 16) * 16 and not part["proj_up"][:, rank:].any()
    assert_same(part["proj_up"][:, :rank], file.truth[QKV]["up"])


def test_a_modulation_may_be_svdquant_and_an_embedder_too(tmp_path):
    """A tool that quantizes every Linear it finds does that."""
    file = ComfyFile()
    for name, shape in ((MOD, (6 * H, H)), ("img_in", (H, 64)), ("final_layer.linear", (64, H))):
        for end in ("weight", "bias", "weight_scale", "weight_zero"):
            file.tensors.pop(f"{name}.{end}", None)
        file.add_svdquant(name, *shape, unsigned=False)
    model = read_checkpoint(Checkpoint(file.write(tmp_path / "x.safetensors")))
    check_values(model, file)
    assert model.layers["img_in"].parts[0].scheme == "int4"


def test_schnell_has_no_guidance(tmp_path):
    model = read_checkpoint(Checkpoint(ComfyFile().write(tmp_path / "x.safetensors")))
    assert not any("guidance" in name for name in model.plain)


def config(name, **changes):
    return lambda f: f.configs[name].update(changes)


def without(name):
    return lambda f: f.tensors.pop(name)


def twice(file):
    file.tensors[f"{QKV}.weight_proj_up"] = file.tensors[f"{QKV}.proj_up"].clone()


def replaced(name, make):
    return lambda f: f.tensors.update({name: make(f.tensors[name])})


DAMAGE = {
    "no scales": (without(f"{QKV}.weight_scale"), "qkv: wscales is missing"),
    "no smoothing": (without(f"{QKV}.smooth_factor"), "qkv: smooth_factor is missing"),
    "half a branch": (without(f"{QKV}.proj_down"), "qkv: proj_down is missing"),
    "no weight": (without(f"{QKV}.weight"), "qkv.weight is missing"),
    "no bias": (without(f"{QKV}.bias"), "bias is missing"),
    "no zeros": (without(f"{MOD}.weight_zero"), "img_mod.lin: wzeros is missing"),
    "both spellings": (twice, "are the same tensor, stored twice"),
    "unknown format": (config(QKV, format="nf4"), "stored as 'nf4', expected svdquant_w4a4 or awq_w4a16"),
    "no format": (lambda f: f.configs[QKV].pop("format"), "has no format"),
    "unknown layout": (config(QKV, layout="swizzled"), "its layout is 'swizzled'"),
    "tiles announced": (config(QKV, layout="kitchen_tile_packed_w4a4"), "is not in tiles"),
    "unknown basis": (config(QKV, lowrank_branch_input_basis="half"), "basis 'half'"),
    "contradicting basis": (
        config(QKV, lowrank_branch_input_basis="post_smoothing"),
        "with proj_down_smooth_folded True",
    ),
    "sign of another type": (config(FC2, act_unsigned="yes"), "act_unsigned is 'yes'"),
    "another group": (config(MOD, group_size=128), "group size is 128, expected 64"),
    "parts that do not add up": (config(QKV, svdquant_part_rows=[1, 2], svdquant_part_ranks=[8, 8]), "do not make up"),
    "parts of nonsense": (config(QKV, svdquant_part_rows="a", svdquant_part_ranks=[8]), "do not make up"),
    "int16 weight": (replaced(f"{QKV}.weight", lambda t: t.to(torch.int16)), "qkv.weight is int16"),
    "odd inputs": (replaced(f"{QKV}.weight", lambda t: t[:, :40]), "inputs in multiples of 64"),
    "scales of other rows": (
        replaced(f"{QKV}.weight_scale", lambda t: t[:, :5]),
        "wscales has shape (2, 5), expected (2, 384)",
    ),
    "NaN": (replaced(f"{QKV}.weight_scale", lambda t: t * float("nan")), "wscales holds NaN"),
    "a stranger": (lambda f: f.tensors.update(extra=torch.ones(1)), "unexpected tensor: extra"),
    "a gap": (without("final_layer.linear.bias"), "missing tensor: final_layer.linear.bias"),
    "another width": (replaced("img_in.weight", lambda t: t[:100]), "img_in.weight has 64 inputs and 100 outputs"),
    "another family": (
        lambda f: f.tensors.update({"transformer_blocks.0.img_mod.1.weight": torch.ones(2)}),
        "unexpected tensor: transformer_blocks.0.img_mod.1.weight",
    ),
    "nunchaku layers as well": (
        lambda f: f.tensors.update({"transformer_blocks.0.qkv_proj.qweight": torch.ones(128, 64, dtype=torch.int8)}),
        "stored in several formats: comfy-native (",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(change, message, tmp_path):
    file = ComfyFile()
    change(file)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(Checkpoint(file.write(tmp_path / "x.safetensors")))
    assert str(caught.value).startswith("x.safetensors: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.tensor([255, 254], dtype=torch.uint8), "is not text"),
        (torch.tensor(list(b"{"), dtype=torch.uint8), "is not JSON"),
        (torch.tensor(list(b"[" * 60_000), dtype=torch.uint8), "is not JSON"),
        (torch.tensor(list(b"[1]"), dtype=torch.uint8), "is not a JSON object"),
        (torch.zeros(100_000, dtype=torch.uint8), "expected a row of bytes"),
        (torch.zeros(3), "expected a row of bytes"),
    ],
    ids=["no text", "no JSON", "nested", "list", "too long", "floats"],
)
def test_a_damaged_config_is_named(tensor, message, tmp_path):
    file = ComfyFile()
    file.configs.pop(QKV)
    file.tensors[f"{QKV}.comfy_quant"] = tensor
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(Checkpoint(file.write(tmp_path / "x.safetensors")))


@pytest.mark.parametrize("shape", [(2, 2, 32, 64), (3, 2, 32, 128), (384, 64)], ids=str)
def test_tiles_of_another_shape_are_named(shape, tmp_path):
    file = ComfyFile(tiled=True)
    file.tensors[f"{QKV}.weight"] = torch.zeros(shape, dtype=torch.int8)
    if shape[0] == 3:
        file.tensors[f"{QKV}.weight_scale"] = torch.ones(3, 2, 64).bfloat16()
    with pytest.raises(CheckpointError, match=r"tiles|expected"):
        read_checkpoint(Checkpoint(file.write(tmp_path / "x.safetensors")))


def test_the_hosts_own_quantized_files_are_left_to_the_host(tmp_path):
    file = ComfyFile()
    file.tensors = {
        "double_blocks.0.img_attn.qkv.weight": torch.ones(2),
        "double_blocks.0.img_attn.qkv.comfy_quant": json_tensor({"format": "float8_e4m3fn"}),
    }
    file.configs = {}
    with pytest.raises(CheckpointError, match="Load Diffusion Model"):
        read_checkpoint(Checkpoint(file.write(tmp_path / "x.safetensors")))


def test_the_tables_here_name_every_layer():
    assert len(FLUX_LAYERS) + len(FLUX_MODULATIONS) == 13
