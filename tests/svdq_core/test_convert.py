"""Converting files: lossless where it can be, refused with the reason where not, in little memory, all or nothing."""

import json

import pytest
import torch
from checkpoint_files import (
    TINY,
    host_dense_samples,
    read_tensors,
    write_legacy_folder,
    write_pixart,
    write_tensors,
)
from comfy_files import ComfyFile
from dense_compare import assert_equivalent, dense_model, prints
from lite_folders import lite_pixart_tensors, lite_tensors, write_lite
from native_folders import flux_folder, pixart_folder, write_native
from packed_files import write_packed

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.convert import convert
from svdquant_pack.svdq_core.errors import ArchitectureError, CheckpointError, SVDQuantError

# one of every kind that is read
SOURCES = {
    "nunchaku int4": lambda folder: TINY["int4"],
    "nunchaku nvfp4": lambda folder: TINY["nvfp4"],
    "nunchaku pixart": lambda folder: write_pixart(folder / "pixart.safetensors"),
    "legacy folder": lambda folder: write_legacy_folder(folder / "legacy"),
    "lite int4": lambda folder: write_lite(folder / "lite", lite_tensors()),
    "lite nvfp4": lambda folder: write_lite(folder / "lite", lite_tensors("nvfp4")),
    "lite pixart": lambda folder: write_lite(
        folder / "lite", lite_pixart_tensors(write_pixart(folder / "pixart.safetensors"))
    ),
    "comfy flux": lambda folder: ComfyFile().write(folder / "comfy.safetensors"),
    "comfy tiled": lambda folder: ComfyFile("pixart", spelling="comfy-kitchen", tiled=True).write(
        folder / "t.safetensors"
    ),
    "comfy pixart": lambda folder: ComfyFile("pixart").write(folder / "comfy.safetensors"),
    "deepcompressor": lambda folder: write_native(folder / "run", flux_folder()),
    "deepcompressor pixart": lambda folder: write_native(folder / "run", pixart_folder()),
    "saved flux": lambda folder: write_packed(folder / "saved.safetensors"),
    "saved pixart": lambda folder: write_packed(folder / "saved.safetensors", write_pixart(folder / "p.safetensors")),
}
# kind -> formats that cannot hold it, and why
REFUSED = {
    ("nunchaku nvfp4", "comfy"): "is NVFP4",
    ("lite nvfp4", "comfy"): "is NVFP4",
}


@pytest.mark.parametrize("to", ["nunchaku", "comfy", "bf16", "svdquant"])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_goes_to_every_format(kind, to, tmp_path):
    """The dense model stays what it is; what a format cannot hold is refused and nothing is written."""
    source, target = SOURCES[kind](tmp_path), tmp_path / "out.safetensors"
    if (kind, to) in REFUSED:
        with pytest.raises(ArchitectureError, match=REFUSED[kind, to]):
            convert(source, target, to)
        assert not target.exists() and not list(tmp_path.glob("*.part"))
        return
    done = convert(source, target, to)
    assert done.nbytes > 0 and done.tensors == len(read_tensors(target)[0])
    if to == "bf16":
        found = read_tensors(target)[0]
        for name, expected in dense_model(source).items():
            assert float((found[name].float() - expected).abs().max()) <= 2**-8 * float(expected.abs().max()), name
    else:
        # bfloat16 of a modulation bias with 1 added, and of a bias that took up the shift
        assert_equivalent(source, target, 0.05 if to == "nunchaku" else 1e-6)


@pytest.mark.parametrize("kind", ["nunchaku int4", "nunchaku pixart", "legacy folder"])
def test_nunchaku_to_comfy_and_back_is_lossless(kind, tmp_path):
    source = SOURCES[kind](tmp_path)
    convert(source, tmp_path / "c.safetensors", "comfy")
    convert(tmp_path / "c.safetensors", tmp_path / "n.safetensors", "nunchaku")
    original = TINY["int4"] if kind == "legacy folder" else source
    assert prints(tmp_path / "n.safetensors") == prints(original)


@pytest.mark.parametrize("precision", TINY)
def test_nunchaku_to_nunchaku_is_lossless(precision, tmp_path):
    convert(TINY[precision], tmp_path / "n.safetensors", "nunchaku")
    assert prints(tmp_path / "n.safetensors") == prints(TINY[precision])


def test_deepcompressor_to_nunchaku_is_what_its_own_converter_writes(tmp_path):
    """Every tensor, bit for bit: the biases of modulation layers are rounded with 1 added, as there."""
    convert(write_native(tmp_path / "run", flux_folder()), tmp_path / "n.safetensors", "nunchaku")
    assert prints(tmp_path / "n.safetensors") == prints(TINY["int4"])


@pytest.mark.parametrize("family", ["flux", "pixart"])
@pytest.mark.parametrize("unsigned", [True, False], ids=["unsigned", "signed"])
def test_comfy_to_nunchaku_and_back_is_lossless(family, unsigned, tmp_path):
    """Also what nunchaku rounds (modulation biases, zeros) and what it runs differently (signed second MLP layers)."""
    file = ComfyFile(family, unsigned=unsigned)
    file.write(tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "comfy")  # the names that are written
    convert(tmp_path / "b.safetensors", tmp_path / "n.safetensors", "nunchaku")
    convert(tmp_path / "n.safetensors", tmp_path / "c.safetensors", "comfy")
    before, after = prints(tmp_path / "b.safetensors"), prints(tmp_path / "c.safetensors")
    split = {n for n in before if "single_blocks.0.linear" in n}  # one layer there, two in nunchaku
    assert {n: before[n] for n in before.keys() - split} == {
        n: after[n] for n in after if "single_blocks.0.linear" not in n
    }
    assert_equivalent(tmp_path / "b.safetensors", tmp_path / "c.safetensors", 1e-6)


def test_signed_layers_behind_a_gelu_are_shifted_for_nunchaku(tmp_path):
    """The dense layer stays the same: what the shift adds, the bias takes away."""
    ComfyFile(unsigned=False).write(tmp_path / "a.safetensors")
    done = convert(tmp_path / "a.safetensors", tmp_path / "n.safetensors", "nunchaku")
    assert any("the shift went into their bias" in note for note in done.notes)
    tensors, _ = read_tensors(tmp_path / "n.safetensors")
    kept = {n: t for n, t in tensors.items() if not n.endswith("signed_bias") and ".exact_" not in n}
    write_tensors(tmp_path / "plain.safetensors", kept)  # what nunchaku itself reads of it
    model = read_checkpoint(Checkpoint(tmp_path / "plain.safetensors"))
    assert model.layers["double_blocks.0.img_mlp.2"].parts[0].act_unsigned
    first, second = dense_model(tmp_path / "a.safetensors"), dense_model(tmp_path / "plain.safetensors")
    name = "double_blocks.0.img_mlp.2"
    assert torch.equal(first[f"{name}.weight"], second[f"{name}.weight"])
    stored = model.layers[name].bias  # rounded to bfloat16 with the shift in it
    difference = (first[f"{name}.bias"] - second[f"{name}.bias"]).abs()
    assert bool((difference <= 2**-8 * stored.abs().float() + 1e-5).all())
    assert float((stored.float() - first[f"{name}.bias"]).abs().max()) > 0.1


def test_modules_without_common_smoothing_do_not_fit_nunchaku(tmp_path):
    tensors = lite_tensors()
    name = "transformer_blocks.0.attn.to_k.smooth_factor"
    tensors[name] = tensors[name] * 2
    folder = write_lite(tmp_path / "lite", tensors)
    with pytest.raises(ArchitectureError, match="3 parts that do not share their smoothing"):
        convert(folder, tmp_path / "n.safetensors", "nunchaku")
    done = convert(folder, tmp_path / "c.safetensors", "comfy")
    assert any("qkv.parts.0 to 2" in note for note in done.notes)
    assert_equivalent(folder, tmp_path / "c.safetensors")


def quantized_embedder(file):
    for end in ("weight", "bias"):
        file.tensors.pop(f"img_in.{end}")
    file.add_svdquant("img_in", 128, 64, unsigned=False)


def svdquant_modulation(file):
    name = "single_blocks.0.modulation.lin"
    for end in ("weight", "bias", "weight_scale", "weight_zero"):
        file.tensors.pop(f"{name}.{end}")
    file.add_svdquant(name, 384, 128, unsigned=False)


def unsigned_attention(file):
    file.configs["double_blocks.0.img_attn.qkv"]["act_unsigned"] = True


def too_large_for_half(file):
    for name, tensor in file.tensors.items():
        if tensor.dtype == torch.bfloat16 and "img_mlp.0" in name:
            file.tensors[name] = tensor.half()
    file.tensors["double_blocks.0.img_mlp.0.bias"] = torch.full((512,), 1e5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (quantized_embedder, "img_in is quantized, and a nunchaku file holds this layer only in 16 bits"),
        (svdquant_modulation, "is stored as int4, and a nunchaku file holds this layer as AWQ W4A16 only"),
        (unsigned_attention, "has unsigned activations, and nunchaku runs this layer with signed ones"),
        (too_large_for_half, r"mlp_fc1\.bias reaches 1e\+05, more than float16 holds"),
    ],
    ids=["embedder", "modulation", "unsigned", "range"],
)
def test_what_nunchaku_cannot_hold_is_refused(change, match, tmp_path):
    file = ComfyFile()
    change(file)
    with pytest.raises(ArchitectureError, match=match):
        convert(file.write(tmp_path / "a.safetensors"), tmp_path / "n.safetensors", "nunchaku")
    assert not (tmp_path / "n.safetensors").exists()
    convert(tmp_path / "a.safetensors", tmp_path / "d.safetensors", "bf16")


def test_bf16_is_the_dense_oracle(tmp_path):
    convert(TINY["int4"], tmp_path / "x.safetensors", "bf16")
    found, _ = read_tensors(tmp_path / "x.safetensors")
    for name, (index, expected) in host_dense_samples().items():
        off = 2**-8 if "mod" in name and name.endswith("bias") else 0
        assert (
            float((found[name].flatten()[index].float() - expected).abs().max())
            <= 2**-8 * float(expected.abs().max()) + off
        )


def test_metadata_are_kept_and_the_source_is_named(tmp_path):
    convert(TINY["int4"], tmp_path / "c.safetensors", "comfy")
    convert(tmp_path / "c.safetensors", tmp_path / "n.safetensors", "nunchaku")
    before, after = read_tensors(TINY["int4"])[1], read_tensors(tmp_path / "n.safetensors")[1]
    for key in ("config", "comfy_config", "model_class"):
        assert after[key] == before[key]
    assert after["svdquant_source"] == "c.safetensors" and after["svdquant_written_by"].startswith("ComfyUI-SVDQuant ")
    assert json.loads(after["quantization_config"])["rank"] == 32


def test_a_damaged_source_writes_nothing(tmp_path):
    tensors, metadata = read_tensors(TINY["int4"])
    tensors["single_transformer_blocks.0.mlp_fc2.wscales"][3, 7] = float("nan")
    source = write_tensors(tmp_path / "x.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match="mlp_fc2: wscales holds NaN"):
        convert(source, tmp_path / "y.safetensors", "comfy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.safetensors"]


def test_an_existing_target_is_kept_unless_it_may_be_replaced(tmp_path):
    target = tmp_path / "y.safetensors"
    target.write_bytes(b"before")
    with pytest.raises(SVDQuantError, match="exists already"):
        convert(TINY["int4"], target, "nunchaku")
    assert target.read_bytes() == b"before"
    convert(TINY["int4"], target, "nunchaku", overwrite=True)
    assert prints(target) == prints(TINY["int4"])


def test_impossible_targets_are_refused(tmp_path):
    with pytest.raises(SVDQuantError, match="'gguf' is no format to write"):
        convert(TINY["int4"], tmp_path / "y", "gguf")
    with pytest.raises(SVDQuantError, match="is a folder"):
        convert(TINY["int4"], tmp_path, "nunchaku", overwrite=True)
    link = tmp_path / "link.safetensors"
    link.symlink_to(TINY["int4"])
    with pytest.raises(SVDQuantError, match="is the source itself"):
        convert(TINY["int4"], link, "nunchaku", overwrite=True)


def test_interrupting_leaves_nothing(tmp_path):
    def stop(done, total, name):
        if done > total * 3 // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(TINY["int4"], tmp_path / "y.safetensors", "nunchaku", on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_piece_twice(tmp_path):
    seen = []
    convert(TINY["int4"], tmp_path / "y.safetensors", "comfy", on_progress=lambda *step: seen.append(step))
    steps = [done for done, _, _ in seen]
    assert steps == list(range(len(seen))) and seen[-1][0] == seen[-1][1]
    assert "double_blocks.0.img_attn.qkv" in {name for _, _, name in seen}
