"""The known ways to misread SVDQuant files, each stepped into on purpose: the right reading differs from the wrong one.

Numbered as in the format notes that this pack was written from.
"""

import json

import pytest
import torch
from checkpoint_files import DATA, TINY, fingerprint, read_tensors, truth, write_tensors
from lite_folders import lite_tensors, write_lite

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.format import GELU_SHIFT
from svdquant_pack.kernels.packing import pack_nibbles
from svdquant_pack.kernels.part_weights import dequantize
from svdquant_pack.svdq_core import layouts
from svdquant_pack.svdq_core.apply_layer import apply_layer, dense_bias, dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint, to_nunchaku
from svdquant_pack.svdq_core.layer import Part, QuantizedLayer

QKV = "transformer_blocks.0.qkv_proj"


def host_layer(precision, name):
    return read_checkpoint(Checkpoint(TINY[precision])).layers[name]


def test_1_the_shapes_of_scales_and_low_rank_are_labels_only():
    """Taken as row-major they are wrong from 256 outputs on; at 128 outputs the scales would hide it."""
    stored, expected = read_tensors(TINY["int4"])[0], truth("int4")
    part = host_layer("int4", "double_blocks.0.img_attn.qkv").parts[0]
    for theirs, ours in (
        ("wscales", part["wscales"].T),
        ("lora_down", part["proj_down"].T),
        ("lora_up", part["proj_up"]),
    ):
        assert fingerprint(ours) == expected[f"{QKV}.{theirs}"]
        as_labelled = stored[f"{QKV}.{theirs}"] if theirs == "lora_up" else stored[f"{QKV}.{theirs}"].T
        assert as_labelled.shape == ours.shape and not torch.equal(as_labelled, ours)
    first_tile = layouts.wscales_from_nunchaku(stored[f"{QKV}.wscales"].flatten()[: 4 * 128].view(4, 128))
    rows = layouts.vector_from_nunchaku(torch.arange(128))
    by_label = stored[f"{QKV}.wscales"].flatten()[: 4 * 128].view(4, 128)[:, rows]
    assert torch.equal(first_tile, by_label)  # why 128 rows prove nothing


def test_2_smoothing_divides_and_its_original_is_a_decoy():
    layer = host_layer(
        "nvfp4", "double_blocks.0.img_attn.proj"
    )  # smoothing folded: ones, and an original of other values
    (part,) = layer.parts
    weight = dense_weight(layer)
    assert not torch.equal(part["smooth_factor"], part["smooth_factor_orig"])
    low_rank = part["proj_up"].float() @ part["proj_down"].float().T
    residual = dequantize(part.tensors, part.scheme)
    assert torch.allclose(weight, residual / part["smooth_factor"].float() + low_rank)
    assert not torch.allclose(weight, residual / part["smooth_factor_orig"].float() + low_rank, rtol=0.01)
    qkv = host_layer("int4", "double_blocks.0.img_attn.qkv")
    (part,) = qkv.parts
    residual, low_rank = dequantize(part.tensors, "int4"), part["proj_up"].float() @ part["proj_down"].float().T
    assert not torch.allclose(dense_weight(qkv), residual * part["smooth_factor"].float() + low_rank, rtol=0.01)
    part.tensors["smooth_factor_orig"] = torch.full((256,), float("nan"))
    assert torch.equal(dense_weight(qkv), residual / part["smooth_factor"].float() + low_rank)


def test_3_the_shift_belongs_to_nunchaku_int4_layers_behind_a_gelu_and_to_no_others(tmp_path):
    """By container, precision and role: not for NVFP4, not for the same role in diffusers' own form."""
    name = "double_blocks.0.img_mlp.2"
    lite = read_checkpoint(Checkpoint(write_lite(tmp_path / "lite", lite_tensors())))
    unsigned = [host_layer("int4", name), host_layer("nvfp4", name), lite.layers[name]]
    assert [layer.parts[0].act_unsigned for layer in unsigned] == [True, False, False]
    layer = unsigned[0]
    dense, plain = dense_bias(layer), layer.bias.float()
    (part,) = layer.parts
    residual = dequantize(part.tensors, "int4") / part["smooth_factor"].float()
    assert torch.allclose(dense, plain + GELU_SHIFT * residual.sum(1))
    x = torch.nn.functional.gelu(torch.randn(64, 1024), approximate="tanh").bfloat16()
    expected = x.float() @ dense_weight(layer).T + dense
    signed = QuantizedLayer(1024, 256, (Part("int4", (0, 256), (0, 1024), False, part.tensors),), layer.bias)

    def error(candidate):
        return float((apply_layer(candidate, x, "w4a4").float() - expected).norm() / expected.norm())

    assert error(layer) < 0.1 < error(signed)
    assert torch.equal(dense_bias(unsigned[1]), unsigned[1].bias.float())


def test_4_modulation_rows_are_interleaved_and_one_is_added_once():
    stored, expected = read_tensors(TINY["int4"])[0], truth("int4")
    name = "transformer_blocks.0.norm1.linear"
    layer = host_layer("int4", "double_blocks.0.img_mod.lin")
    natural = layouts.rows_from_interleaved(stored[f"{name}.bias"], 6)
    assert fingerprint(natural) == expected[f"{name}.bias_with_plus1"] != fingerprint(stored[f"{name}.bias"])
    means = layer.bias.view(6, -1).mean(dim=1)
    assert float(means.abs().max()) < 0.1  # as a trained model has them: the host adds the 1 itself
    raised = natural.float().view(6, -1).mean(dim=1)
    assert [round(float(m)) for m in raised] == [0, 1, 0, 0, 1, 0]
    assert layer.bias.dtype == torch.float32  # in 16 bits taking the 1 off would lose what is left of the bias


def test_5_ranks_come_from_each_tensor_not_from_the_metadata(tmp_path):
    tensors, metadata = read_tensors(TINY["int4"])
    tensors[f"{QKV}.lora_down"], tensors[f"{QKV}.lora_up"] = (
        torch.randn(256, 128).bfloat16(),
        torch.randn(768, 128).bfloat16(),
    )
    claims = json.loads(metadata["quantization_config"]) | {"rank": 64}
    path = write_tensors(tmp_path / "x.safetensors", tensors, metadata | {"quantization_config": json.dumps(claims)})
    model = read_checkpoint(Checkpoint(path))
    assert model.ranks == [32, 128]
    assert json.loads(to_nunchaku(model)[1]["quantization_config"])["rank"] == 128


def test_6_a_lora_strength_leaves_the_files_own_branch_alone(tmp_path):
    """Also its columns beyond the 32nd, which a scale for each 16 ranks would reach on a file of rank 128."""
    tensors, _ = read_tensors(TINY["int4"])
    tensors[f"{QKV}.lora_down"] = 0.1 * torch.randn(256, 128).bfloat16()
    tensors[f"{QKV}.lora_up"] = 0.1 * torch.randn(768, 128).bfloat16()
    layer = read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", tensors))).layers[
        "double_blocks.0.img_attn.qkv"
    ]
    x, down, up = torch.randn(4, 256), torch.randn(256, 16), torch.randn(768, 16)
    alone = apply_layer(layer, x, "w4a16")
    for strength in (0.0, 0.5, -3.0):
        out = apply_layer(layer, x, "w4a16", down, strength * up)
        assert torch.allclose(out - alone, strength * (x @ down) @ up.T, rtol=1e-3, atol=1e-2)


def test_7_sums_are_float32_also_in_float16():
    """Two halves that cancel: their partial sums are beyond float16, the result is not."""
    half = torch.full((128, 128), 7)
    codes = torch.cat((half, -half), dim=1).to(torch.int8)
    tensors = {
        "qweight": pack_nibbles(codes),
        "wscales": torch.full((4, 128), 20.0, dtype=torch.float16),
        "smooth_factor": torch.ones(256, dtype=torch.float16),
        "proj_down": torch.zeros(256, 0, dtype=torch.float16),
        "proj_up": torch.zeros(128, 0, dtype=torch.float16),
    }
    layer = QuantizedLayer(256, 128, (Part("int4", (0, 128), (0, 256), False, tensors),), None)
    x = torch.full((2, 256), 7.0, dtype=torch.float16)
    assert float(half.sum(1)[0]) * 20.0 * 7.0 > torch.finfo(torch.float16).max
    for compute in ("w4a4", "w4a8", "w4a16"):
        out = apply_layer(layer, x, compute)
        assert bool(torch.isfinite(out).all()) and float(out.abs().max()) < 200


@pytest.mark.parametrize("precision", TINY)
def test_8_precision_is_that_of_the_tensors_not_of_name_or_metadata(precision, tmp_path):
    tensors, metadata = read_tensors(TINY[precision])
    other = {"int4": "nvfp4", "nvfp4": "int4"}[precision]
    lying = metadata | {"quantization_config": read_tensors(TINY[other])[1]["quantization_config"]}
    path = write_tensors(tmp_path / f"svdq-{other}_r32-flux.safetensors", tensors, lying)
    model = read_checkpoint(Checkpoint(path))
    assert model.precision == precision
    assert {p.scheme for layer in model.layers.values() for p in layer.parts} == {precision, "awq"}


def test_9_a_file_with_a_lora_merged_in_is_read_with_all_of_it(tmp_path):
    """nunchaku's own merge of a LoRA on every layer: rank 48, a branch on modulation layers, plain layers as well."""
    tensors, metadata = read_tensors(TINY["int4"])
    merged, _ = read_tensors(DATA / "lora_int4_nunchaku_converted.safetensors")
    plain = {n: merged.pop(n) for n in list(merged) if n.startswith("proj_out.")}
    path = write_tensors(tmp_path / "x.safetensors", tensors | merged, metadata)
    model, base = read_checkpoint(Checkpoint(path)), read_checkpoint(Checkpoint(TINY["int4"]))
    lora, _ = read_tensors(DATA / "lora_diffusers_r4.safetensors")

    def delta(module):
        up, down = (lora[f"transformer.{module}.lora_{x}.weight"].float() for x in "BA")
        return up @ down

    block = "transformer_blocks.0."
    expected = {
        "double_blocks.0.img_attn.qkv": torch.cat([delta(f"{block}attn.to_{x}") for x in "qkv"]),
        "double_blocks.0.txt_attn.proj": delta(f"{block}attn.to_add_out"),
        "double_blocks.0.img_mlp.2": delta(f"{block}ff.net.2"),
        "double_blocks.0.img_mod.lin": delta(f"{block}norm1.linear"),
        "single_blocks.0.linear2": delta("single_transformer_blocks.0.proj_out"),
    }
    for name, wanted in expected.items():
        found = dense_weight(model.layers[name]) - dense_weight(base.layers[name])
        assert float((found - wanted).abs().max()) <= 2**-7 * float(wanted.abs().max()), name
    assert model.ranks == [48] and len(plain) == 2
    assert {n: fingerprint(t) for n, t in to_nunchaku(model)[0].items()} == {
        n: fingerprint(t) for n, t in (tensors | merged).items()
    }


@pytest.mark.parametrize("channels", [16, 32, 96])
def test_10_an_input_layer_of_any_width_is_kept_as_it_is(channels, tmp_path):
    """Wider ones belong to Canny, Depth and Fill; cutting or concatenating them would mix up channels."""
    tensors, _ = read_tensors(TINY["int4"])
    tensors["x_embedder.weight"] = torch.randn(256, 4 * channels).bfloat16()
    model = read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", tensors)))
    assert torch.equal(model.plain["img_in.weight"], tensors["x_embedder.weight"])
    _, metadata = to_nunchaku(model)
    assert json.loads(metadata["comfy_config"])["model_config"]["in_channels"] == channels


def nvfp4_weight(change, tmp_path):
    tensors, metadata = read_tensors(TINY["nvfp4"])
    change(tensors)
    model = read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", tensors, metadata)))
    return dequantize(model.layers["double_blocks.0.img_attn.proj"].parts[0].tensors, "nvfp4")


def test_11_outer_scales_apply_each_once_whichever_is_there(tmp_path):
    """One for the tensor: 16 or 32 bits, of shape (1,) or (); one for each channel; both; none at all, which means one.

    One layer without, where the others have one, is damage: test_alike_layers.py.
    """
    name = "transformer_blocks.0.out_proj"
    whole = read_tensors(TINY["nvfp4"])[0][f"{name}.wtscale"]
    original = nvfp4_weight(lambda t: None, tmp_path)

    def put(**scales):
        def change(tensors):
            tensors.pop(f"{name}.wtscale")
            tensors |= {f"{name}.{key}": value for key, value in scales.items()}

        return change

    ones = torch.ones(256).bfloat16()
    for same in (put(wtscale=whole.float()), put(wtscale=whole[0].clone()), put(wtscale=whole, wcscales=ones)):
        assert torch.equal(nvfp4_weight(same, tmp_path), original)
    assert torch.equal(nvfp4_weight(put(wcscales=whole.expand(256)), tmp_path), original)

    def without_any(tensors):
        for key in [key for key in tensors if key.endswith((".wtscale", ".wcscales"))]:
            del tensors[key]

    assert torch.allclose(nvfp4_weight(without_any, tmp_path) * whole.float(), original)
    assert float(whole) != 1.0
    both = nvfp4_weight(put(wtscale=whole, wcscales=2 * ones), tmp_path)
    assert torch.equal(both, 2 * original)


def test_12_fp8_scales_are_moved_as_bytes():
    """Every one of the 256 patterns survives, NaN among them, where a conversion would lose it."""
    patterns = torch.arange(256, dtype=torch.uint8).repeat(8, 1)
    stored = layouts.wscales_to_nunchaku(patterns.view(torch.float8_e4m3fn))
    assert stored.dtype == torch.float8_e4m3fn and bool(stored.view(torch.uint8).eq(0x7F).any())
    assert torch.equal(layouts.wscales_from_nunchaku(stored).view(torch.uint8), patterns)
    assert torch.equal(reference.decode_e2m1(torch.arange(16)).abs(), torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6] * 2))
