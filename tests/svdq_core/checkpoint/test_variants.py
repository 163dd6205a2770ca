"""The members of the FLUX family: with guidance and without, 16, 32 and 96 input channels, any number of blocks."""

import json

import pytest
import torch
from checkpoint_files import TINY, fingerprint, read_tensors, write_pixart, write_tensors
from model_compare import differences

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint, to_nunchaku
from svdquant_pack.svdq_core.convert import convert
from svdquant_pack.svdq_core.errors import CheckpointError

# name -> (input channels of the host's model, guidance)
MEMBERS = {
    "dev, Krea, Kontext": (16, True),
    "schnell": (16, False),
    "Canny, Depth": (32, True),
    "Fill": (96, True),
}


def member(channels, guidance, path, *, dtype=None, doubles=1, singles=1):
    """The tiny file as that member, without the metadata that would tell."""
    tensors, _ = read_tensors(TINY["int4"])
    if not guidance:
        tensors = {n: t for n, t in tensors.items() if "guidance_embedder" not in n}
    tensors["x_embedder.weight"] = torch.randn(256, 4 * channels).bfloat16()
    blocks = {"transformer_blocks.": doubles, "single_transformer_blocks.": singles}
    for prefix, count in blocks.items():
        for index in range(1, count):
            for name in [n for n in tensors if n.startswith(f"{prefix}0.")]:
                tensors[name.replace("_blocks.0.", f"_blocks.{index}.")] = tensors[name].clone()
    if dtype is not None:
        tensors = {n: t.to(dtype) if t.dtype == torch.bfloat16 else t for n, t in tensors.items()}
    return write_tensors(path, tensors)


@pytest.mark.parametrize(("channels", "guidance"), MEMBERS.values(), ids=MEMBERS)
def test_every_member_maps_completely(channels, guidance, tmp_path):
    source = member(channels, guidance, tmp_path / "x.safetensors", doubles=2, singles=3)
    model = read_checkpoint(Checkpoint(source))
    assert model.plain["img_in.weight"].shape == (256, 4 * channels)
    assert ("guidance_in.in_layer.weight" in model.plain) == guidance
    tensors, metadata = to_nunchaku(model)
    original = read_tensors(source)[0]
    assert {n: fingerprint(t) for n, t in tensors.items()} == {n: fingerprint(t) for n, t in original.items()}
    host, diffusers = json.loads(metadata["comfy_config"]), json.loads(metadata["config"])
    assert host["model_class"] == ("Flux" if guidance else "FluxSchnell")
    expected = {"in_channels": channels, "out_channels": 16, "guidance_embed": guidance, "depth": 2}
    assert {key: host["model_config"][key] for key in expected} == expected
    assert host["model_config"]["depth_single_blocks"] == 3
    assert (diffusers["in_channels"], diffusers["guidance_embeds"]) == (4 * channels, guidance)
    assert diffusers["out_channels"] == (None if channels == 16 else 64)


@pytest.mark.parametrize(("channels", "guidance"), MEMBERS.values(), ids=MEMBERS)
def test_every_member_goes_through_every_format(channels, guidance, tmp_path):
    source = member(channels, guidance, tmp_path / "x.safetensors")
    for to in ("comfy", "bf16"):
        convert(source, tmp_path / f"{to}.safetensors", to)
    convert(tmp_path / "comfy.safetensors", tmp_path / "n.safetensors", "nunchaku")
    assert (
        differences(read_checkpoint(Checkpoint(tmp_path / "n.safetensors")), read_checkpoint(Checkpoint(source))) == []
    )


def test_float16_files_are_kept_in_float16(tmp_path):
    source = member(16, True, tmp_path / "x.safetensors", dtype=torch.float16)
    model = read_checkpoint(Checkpoint(source))
    assert model.layers["single_blocks.0.linear1"].parts[0]["wscales"].dtype == torch.float16
    tensors, _ = to_nunchaku(model)
    assert {n: fingerprint(t) for n, t in tensors.items()} == {
        n: fingerprint(t) for n, t in read_tensors(source)[0].items()
    }


def test_half_of_the_guidance_is_a_damaged_file(tmp_path):
    source = member(16, True, tmp_path / "x.safetensors")
    tensors, _ = read_tensors(source)
    del tensors["time_text_embed.guidance_embedder.linear_2.weight"]
    with pytest.raises(CheckpointError, match="guidance_embedder"):
        read_checkpoint(Checkpoint(write_tensors(source, tensors)))


def test_pixart_alpha_has_two_embedders_more(tmp_path):
    source = write_pixart(tmp_path / "x.safetensors")
    tensors, metadata = read_tensors(source)
    for name in ("resolution_embedder", "aspect_ratio_embedder"):
        for end, shape in (
            ("linear_1.weight", (42, 256)),
            ("linear_1.bias", (42,)),
            ("linear_2.weight", (42, 42)),
            ("linear_2.bias", (42,)),
        ):
            tensors[f"adaln_single.emb.{name}.{end}"] = torch.randn(shape).half()
    model = read_checkpoint(Checkpoint(write_tensors(source, tensors, metadata)))
    assert model.plain["csize_embedder.mlp.0.weight"].shape == (42, 256)
    assert {n: fingerprint(t) for n, t in to_nunchaku(model)[0].items()} == {
        n: fingerprint(t) for n, t in tensors.items()
    }
