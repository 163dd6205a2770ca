"""deepcompressor's own output is read as its converter would: codes, branch, folded smoothing, shifted biases."""

import pytest
import torch
from checkpoint_files import TINY, write_pixart
from model_compare import differences
from native_folders import flux_folder, pixart_folder, write_native

from svdquant_pack.kernels.packing import unpack_uint4
from svdquant_pack.kernels.reference import decode_e2m1
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError

QKV, FC2 = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2"
MODULATIONS = {"double_blocks.0.img_mod.lin", "double_blocks.0.txt_mod.lin", "single_blocks.0.modulation.lin"}


def test_flux_equals_the_file_that_the_converter_made(tmp_path):
    model = read_checkpoint(Checkpoint(write_native(tmp_path / "run", flux_folder())))
    converted = read_checkpoint(Checkpoint(TINY["int4"]))
    assert set(differences(model, converted)) == {f"{name}: bias" for name in MODULATIONS}
    for name in MODULATIONS:  # the file has them rounded with 1 added
        difference = model.layers[name].bias.float() - converted.layers[name].bias
        assert model.layers[name].bias.dtype == torch.bfloat16 and difference.abs().max() <= 2**-8


def test_pixart_equals_the_file_that_the_converter_made(tmp_path):
    model = read_checkpoint(Checkpoint(write_native(tmp_path / "run", pixart_folder())))
    assert differences(model, read_checkpoint(Checkpoint(write_pixart(tmp_path / "x.safetensors")))) == []


def nvfp4_folder():
    """A folder whose weights are those of the tiny NVFP4 file; smoothing folded at the attention outputs."""
    model = read_checkpoint(Checkpoint(TINY["nvfp4"]))
    files = flux_folder()
    del files["smooth"]["proj.fuse_when_possible"]  # absent means true
    for block in model.architecture.blocks:
        for linear in block.linears:
            for source, part in zip(linear.sources, model.layers[f"{block.host}.0.{linear.host}"].parts, strict=True):
                if part.scheme == "nvfp4":
                    _store_nvfp4(files, f"{block.source}.0.", block.native[source], part)
    for name in [n for n in files["model"] if n.endswith(".shift")]:
        del files["model"][name]
    for content in files.values():
        for name in [n for n in content if ".net.2.linear" in n or ".linears.1.linear" in n]:
            content[name.replace(".linear", "", 1) if ".net." in name else name.replace("1.linear", "1")] = content.pop(
                name
            )
    return files, model


def _store_nvfp4(files, prefix, native, part):
    outer = part.get("wtscale") if part.get("wtscale") is not None else part["wcscales"]
    wrapped = ".linear" if f"{prefix}{native.modules[0]}.linear.weight" in files["model"] else ""
    height = part.out_features // len(native.modules)
    values = decode_e2m1(unpack_uint4(part["qweight"]))
    inner = part["wscales"].view(torch.uint8).T.contiguous().view(torch.float8_e4m3fn).float()
    for index, name in enumerate(native.modules):
        rows = slice(index * height, (index + 1) * height)
        scale = outer[:1] if outer.numel() == 1 else outer[rows][:1]
        dense = values[rows].view(height, -1, 16) * inner[rows][..., None] * scale.float()
        module = f"{prefix}{name}{wrapped}"
        files["model"][f"{module}.weight"] = dense.view(height, -1).bfloat16()
        files["scale"][f"{module}.weight.scale.0"] = scale.view(1, 1, 1, 1)
        files["scale"][f"{module}.weight.scale.1"] = inner[rows][:, None, :, None].bfloat16()
    files["smooth"][prefix + native.smooth if native.smooth else prefix + native.modules[0] + wrapped] = part[
        "smooth_factor_orig"
    ]


def test_nvfp4_codes_and_folded_smoothing(tmp_path):
    files, expected = nvfp4_folder()
    model = read_checkpoint(Checkpoint(write_native(tmp_path / "run", files)))
    for name in model.layers.keys() - MODULATIONS:
        for part, wanted in zip(model.layers[name].parts, expected.layers[name].parts, strict=True):
            assert part.scheme == "nvfp4" and not part.act_unsigned
            for key in ("qweight", "wscales", "wtscale", "wcscales", "smooth_factor", "smooth_factor_orig"):
                assert (part.get(key) is None) == (wanted.get(key) is None), f"{name} {key}"
                if part.get(key) is not None:
                    assert torch.equal(part[key].view(torch.uint8), wanted[key].view(torch.uint8)), f"{name} {key}"
    folded = model.layers["double_blocks.0.img_attn.proj"].parts[0]
    assert bool((folded["smooth_factor"] == 1).all()) and not bool((folded["smooth_factor_orig"] == 1).all())


def test_without_smoothing_and_branch(tmp_path):
    """A run may have neither: both files are absent then."""
    files = flux_folder()
    del files["smooth"], files["branch"]
    model = read_checkpoint(Checkpoint(write_native(tmp_path / "run", files)))
    part = model.layers["double_blocks.0.img_attn.qkv"].parts[0]
    assert part.rank == 0 and bool((part["smooth_factor"] == 1).all())


def test_layers_that_the_recipe_left_alone_stay_in_16_bits(tmp_path):
    files = flux_folder()
    names = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"] + ["transformer_blocks.0.norm1.linear"]
    for name in names:
        del files["scale"][f"{name}.weight.scale.0"], files["scale"][f"{name}.weight.zero"]
    del files["smooth"][QKV], files["branch"][QKV]
    model = read_checkpoint(Checkpoint(write_native(tmp_path / "run", files)))
    assert model.plain["double_blocks.0.img_attn.qkv.weight"].shape == (768, 256)
    assert torch.equal(
        model.plain["double_blocks.0.img_mod.lin.bias"], files["model"]["transformer_blocks.0.norm1.linear.bias"]
    )


def test_a_rank_is_padded_with_zeros(tmp_path):
    files = flux_folder()
    branch = files["branch"][QKV]
    files["branch"][QKV] = {"a.weight": branch["a.weight"][:20], "b.weight": branch["b.weight"][:, :20]}
    part = (
        read_checkpoint(Checkpoint(write_native(tmp_path / "run", files)))
        .layers["double_blocks.0.img_attn.qkv"]
        .parts[0]
    )
    assert part.rank == 32 and not part["proj_up"][:, 20:].any() and part["proj_up"][:, 19].any()


def test_float32_output_is_read(tmp_path):
    """The default dtype of runs other than FLUX."""
    files = pixart_folder()
    for content in files.values():
        for name, value in content.items():
            content[name] = {n: t.float() for n, t in value.items()} if isinstance(value, dict) else value
            if isinstance(value, torch.Tensor):
                content[name] = value.float()
    model = read_checkpoint(Checkpoint(write_native(tmp_path / "run", files)))
    part = model.layers["blocks.0.mlp.fc2"].parts[0]
    assert part.act_unsigned and part["wscales"].dtype == torch.float32


def changed(name, change):
    def apply(files):
        file, _, key = name.partition("/")
        files[file][key] = change(files[file][key])

    return apply


DAMAGE = {
    "weights of another run": (changed(f"model/{QKV}.weight", lambda t: t + 0.4 * t.abs().max()), "grid of its scales"),
    "codes outside": (changed(f"scale/{QKV}.weight.scale.0", lambda t: t / 4), "grid of its scales"),
    "NaN weight": (changed(f"model/{QKV}.weight", lambda t: t * float("nan")), "holds NaN"),
    "NaN scale": (changed(f"scale/{QKV}.weight.scale.0", lambda t: t * float("nan")), "scales holds NaN"),
    "scales of another group": (
        changed("scale/transformer_blocks.0.attn.to_out.0.weight.scale.0", lambda t: t[:, :, :2]),
        "expected one for each 64",
    ),
    "no scale for one of three": (lambda f: f["scale"].pop(f"{QKV}.weight.scale.0"), "missing tensor: scale.pt/"),
    "half a branch": (
        lambda f: f["branch"][QKV].pop("a.weight"),
        "missing tensor: branch.pt/transformer_blocks.0.attn.to_q/a",
    ),
    "branch of another size": (
        changed(f"branch/{QKV}", lambda b: b | {"b.weight": b["b.weight"][:700]}),
        "low-rank branch has shapes",
    ),
    "another shift": (changed(f"model/{FC2}.shift", lambda t: t * 2), "shifted by [0.34375]"),
    "smoothing of another size": (changed(f"smooth/{QKV}", lambda t: t[:100]), "smoothing has shape (100,)"),
    "zero points": (changed("scale/transformer_blocks.0.norm1.linear.weight.zero", lambda t: t + 1), "zero points"),
    "a gap": (lambda f: f["model"].pop("x_embedder.weight"), "missing tensor: model.pt/x_embedder.weight"),
    "a stranger": (lambda f: f["model"].update(extra=torch.ones(1)), "unexpected tensor: model.pt/extra"),
    "one of a pair unquantized": (
        lambda f: [f["scale"].pop(n) for n in list(f["scale"]) if "proj_mlp" in n],
        "only some of qkv_proj and mlp_fc1 are quantized",
    ),
    "no bias": (lambda f: f["model"].pop("transformer_blocks.0.attn.to_out.0.bias"), "bias is missing"),
    "another family": (
        lambda f: f.update(model={"transformer_blocks.0.img_mod.1.weight": torch.ones(2)}),
        "deepcompressor's own output of a Qwen-Image model, whose names there are not described here",
    ),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(change, message, tmp_path):
    files = flux_folder()
    change(files)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(Checkpoint(write_native(tmp_path / "run", files)))
    assert str(caught.value).startswith("run: ") and message in str(caught.value)
