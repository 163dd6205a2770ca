"""A layer and its blob: every tensor comes back bit for bit, and what does not fit is named."""

import json
from dataclasses import replace

import pytest
import torch
from compare import assert_same
from tiny_files import DATA

from svdquant_pack.kernels.format import BLOB_ALIGNMENT
from svdquant_pack.svdq_core import layer as layer_file
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.layer import BlobLayout, Part, with_tensors


@pytest.fixture(scope="module", params=["int4", "nvfp4"])
def model(request):
    return read_checkpoint(Checkpoint(DATA / f"flux_tiny_{request.param}_r32.safetensors"))


def test_blob_holds_every_tensor(model):
    for layer in model.layers.values():
        blob, layout = layer.to_blob()
        back = BlobLayout.from_json(layout.to_json()).read(blob, layer.bias)
        assert back.in_features == layer.in_features and back.out_features == layer.out_features
        for part, original in zip(back.parts, layer.parts, strict=True):
            assert (part.scheme, part.rows, part.columns, part.act_unsigned) == (
                original.scheme,
                original.rows,
                original.columns,
                original.act_unsigned,
            )
            assert part.tensors.keys() == original.tensors.keys()
            for name, tensor in part.tensors.items():
                assert_same(tensor, original[name])


def test_blob_slices_are_aligned_views(model):
    blob, layout = next(iter(model.layers.values())).to_blob()
    for part in layout.parts:
        for place in part.slices.values():
            assert place.offset % BLOB_ALIGNMENT == 0
            assert place.read(blob).untyped_storage().data_ptr() == blob.untyped_storage().data_ptr()


def test_what_was_read_side_by_side_is_packed_without_a_copy(model):
    """Also with what is worked out on loading, for which there is room behind the rest."""
    for name, layer in model.layers.items():
        quantized = layer.parts[0].scheme != "awq"
        if quantized:
            scales = [torch.arange(part.out_features, dtype=torch.float32) for part in layer.parts]
            parts = [with_tensors(p, channel_scales=s) for p, s in zip(layer.parts, scales, strict=True)]
            layer = replace(layer, parts=tuple(parts))
        blob, layout = layer.to_blob()
        assert blob.data_ptr() == layer.arena.memory.data_ptr(), name
        assert not quantized or layer.to_blob()[0].data_ptr() != blob.data_ptr(), "one room, one blob"
        copied, plain = replace(layer, arena=None).to_blob()
        assert copied.data_ptr() != blob.data_ptr()
        for found, expected in zip(layout.parts, plain.parts, strict=True):
            for tensor, place in expected.slices.items():
                assert_same(found.slices[tensor].read(blob), place.read(copied))
        without, _ = layout.without_derived(blob)
        assert without.numel() == layout.without_derived(blob)[0].numel() <= blob.numel()


def test_changed_layers_leave_the_arena_alone(model):
    layer = model.layers["double_blocks.0.img_attn.qkv"]
    before = layer.arena.memory.clone()
    wider = with_tensors(
        layer.parts[0], proj_down=torch.cat([layer.parts[0]["proj_down"]] * 8, 1), proj_up=torch.zeros(768, 256)
    )
    blob, layout = replace(layer, parts=(wider,)).to_blob()
    assert_same(layout.read(blob).parts[0]["proj_down"], wider["proj_down"])
    narrower = with_tensors(layer.parts[0], proj_down=torch.zeros(256, 0), proj_up=torch.zeros(768, 0))
    replace(layer, parts=(narrower,)).to_blob()
    assert_same(layer.arena.memory, before)


def test_equal_layers_give_equal_bytes(model):
    """Whatever memory held before, also between the tensors."""
    layer = model.layers["single_blocks.0.linear1"]
    blobs = []
    for fill in (0, 255):
        place = torch.full((layer.nbytes + 65536,), fill, dtype=torch.uint8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layer_file, "blank", lambda nbytes, device, place=place: place[:nbytes])
            blobs.append(replace(layer, arena=None).to_blob()[0].clone())
    assert_same(*blobs)


def test_layout_is_plain_json(model):
    layout = next(iter(model.layers.values())).to_blob()[1]
    assert json.loads(layout.to_json())["in_features"] == layout.in_features


def draw_part(**changes) -> Part:
    tensors = {
        "qweight": torch.zeros(128, 64, dtype=torch.int8),
        "wscales": torch.ones(2, 128, dtype=torch.bfloat16),
        "smooth_factor": torch.ones(128, dtype=torch.bfloat16),
        "proj_down": torch.zeros(128, 16, dtype=torch.bfloat16),
        "proj_up": torch.zeros(128, 16, dtype=torch.bfloat16),
    }
    return with_tensors(Part("int4", (0, 128), (0, 128), False, tensors), **changes)


def test_a_right_part_passes():
    draw_part().check("file: layer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wscales": torch.ones(1, 128, dtype=torch.bfloat16)}, ["wscales", "(1, 128)", "(2, 128)"]),
        ({"wscales": torch.ones(2, 128).to(torch.float8_e4m3fn)}, ["wscales", "float8_e4m3fn", "bfloat16"]),
        ({"smooth_factor": torch.full((128,), float("nan"))}, ["smooth_factor", "NaN"]),
        ({"proj_down": torch.zeros(128, 32, dtype=torch.bfloat16)}, ["proj_down", "(128, 32)", "(128, 16)"]),
        ({"strange": torch.zeros(1)}, ["strange", "unexpected"]),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    with pytest.raises(CheckpointError) as error:
        draw_part(**changes).check("some file: some layer")
    assert all(word in str(error.value) for word in ["some file: some layer", *words])


def test_nan_in_fp8_scales_is_found():
    scales = torch.ones(8, 128).to(torch.float8_e4m3fn)
    scales.view(torch.uint8)[3, 3] = 0x7F
    part = draw_part(wscales=scales)
    with pytest.raises(CheckpointError, match="wscales holds NaN"):
        Part("nvfp4", part.rows, part.columns, False, part.tensors).check("file")
