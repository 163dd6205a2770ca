"""The blob of a layer: every tensor comes back bit for bit, and equal layers give equal bytes."""

import json
from dataclasses import replace

import pytest
import torch
from compare import assert_same
from tiny_files import DATA

from svdquant_pack.kernels.format import BLOB_ALIGNMENT
from svdquant_pack.svdq_core import blob as blob_file
from svdquant_pack.svdq_core.blob import BlobLayout, side_by_side, to_blob
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.convert import convert
from svdquant_pack.svdq_core.layer import with_tensors


@pytest.fixture(scope="module", params=["int4", "nvfp4"])
def model(request):
    return read_checkpoint(Checkpoint(DATA / f"flux_tiny_{request.param}_r32.safetensors"))


def test_blob_holds_every_tensor(model):
    for layer in model.layers.values():
        blob, layout = to_blob(layer)
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
    blob, layout = to_blob(next(iter(model.layers.values())))
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
        blob, layout = to_blob(layer)
        assert blob.data_ptr() == layer.arena.memory.data_ptr(), name
        assert not quantized or to_blob(layer)[0].data_ptr() != blob.data_ptr(), "one room, one blob"
        copied, plain = to_blob(replace(layer, arena=None))
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
    blob, layout = to_blob(replace(layer, parts=(wider,)))
    assert_same(layout.read(blob).parts[0]["proj_down"], wider["proj_down"])
    narrower = with_tensors(layer.parts[0], proj_down=torch.zeros(256, 0), proj_up=torch.zeros(768, 0))
    to_blob(replace(layer, parts=(narrower,)))
    assert_same(layer.arena.memory, before)


def test_equal_layers_give_equal_bytes(model):
    """Whatever memory held before, also between the tensors."""
    layer = model.layers["single_blocks.0.linear1"]
    blobs = []
    for fill in (0, 255):
        place = torch.full((layer.nbytes + 65536,), fill, dtype=torch.uint8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blob_file, "blank", lambda nbytes, device, place=place: place[:nbytes])
            blobs.append(to_blob(replace(layer, arena=None))[0].clone())
    assert_same(*blobs)


def test_layout_is_plain_json(model):
    layout = to_blob(next(iter(model.layers.values())))[1]
    assert json.loads(layout.to_json())["in_features"] == layout.in_features


def test_tensors_from_anywhere_are_laid_side_by_side(model):
    for name, layer in model.layers.items():
        scattered = replace(layer, arena=None)
        packed = side_by_side(scattered)
        (blob, layout), (expected, same) = to_blob(packed), to_blob(scattered)
        assert torch.equal(blob, expected) and layout == same, name
        assert blob.data_ptr() == packed.arena.memory.data_ptr()


@pytest.mark.parametrize("form", ["svdquant", "comfy"])
def test_a_saved_blob_is_taken_as_it_was_read(form, tmp_path):
    """And one of another format is copied by those who read it, not afterwards."""
    path = tmp_path / "x.safetensors"
    convert(DATA / "flux_tiny_int4_r32.safetensors", path, form)
    for name, layer in read_checkpoint(Checkpoint(path)).layers.items():
        blob, _ = to_blob(layer)
        assert layer.arena is not None and blob.data_ptr() == layer.arena.memory.data_ptr(), name
