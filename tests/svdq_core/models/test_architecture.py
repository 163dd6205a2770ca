"""The tables of the families: counting, shapes, and every tensor of ComfyUI's own model named once."""

import pytest

from svdquant_pack.svdq_core.models import FLUX, PIXART


@pytest.mark.parametrize("index", ["²", "٣", "1" * 5000, "1000", "-1", "0x1", "", "1_0"])
def test_an_index_that_is_none_counts_no_block(index):
    assert FLUX.count_blocks([f"double_blocks.{index}.img_attn.qkv.weight"], "host") == {
        "double_blocks": 0,
        "single_blocks": 0,
    }


def test_blocks_are_counted_by_the_highest_index():
    names = ["transformer_blocks.18.norm1.linear.weight", "single_transformer_blocks.3.x", "x_embedder.weight"]
    assert FLUX.count_blocks(names, "source") == {"double_blocks": 19, "single_blocks": 4}


def test_linears_are_found_by_their_host_name():
    assert FLUX.find_linear("single_blocks.37.linear2").sources == ("out_proj", "mlp_fc2")
    assert PIXART.find_linear("blocks.0.mlp.fc2").unsigned == (0,)
    for name in ("img_in", "double_blocks.0.img_attn", "double_blocks.x.img_attn.qkv", "blocks.0.attn.qkv"):
        assert FLUX.find_linear(name) is None


@pytest.mark.parametrize(
    ("architecture", "name", "shape"),
    [
        (FLUX, "double_blocks.3.img_mod.lin.weight", (18432, 3072)),
        (FLUX, "single_blocks.0.linear1.weight", (21504, 3072)),
        (FLUX, "single_blocks.0.linear2.weight", (3072, 15360)),
        (FLUX, "single_blocks.0.linear2.bias", (3072,)),
        (FLUX, "final_layer.adaLN_modulation.1.bias", (6144,)),
        (FLUX, "img_in.weight", (3072, None)),
        (FLUX, "double_blocks.0.txt_attn.norm.key_norm.weight", (None,)),
        (PIXART, "blocks.0.cross_attn.kv_linear.weight", (6144, 3072)),
        (PIXART, "blocks.0.scale_shift_table", (6, 3072)),
        (PIXART, "t_block.1.weight", (18432, 3072)),
        (FLUX, "unknown", None),
    ],
)
def test_shapes_follow_from_the_width(architecture, name, shape):
    assert architecture.shape_of(name, 3072) == shape


@pytest.mark.parametrize("architecture", [FLUX, PIXART], ids=lambda a: a.name)
def test_every_tensor_has_a_shape(architecture):
    names = list(architecture.plain_tensors())
    names += [f"{b.host}.0.{n}" for b in architecture.blocks for n in b.plain]
    assert [name for name in names if architecture.shape_of(name, 128) is None] == []


def test_rectangles_tile_the_weight():
    linear1, linear2 = (FLUX.find_linear(f"single_blocks.0.linear{n}") for n in (1, 2))
    assert linear1.rectangles(7 * 128, 128) == [((0, 384), (0, 128)), ((384, 896), (0, 128))]
    assert linear2.rectangles(128, 5 * 128) == [((0, 128), (0, 128)), ((0, 128), (128, 640))]
    assert FLUX.find_linear("double_blocks.0.img_mlp.0").rectangles(512, 128) == [((0, 512), (0, 128))]


def test_optional_parts_are_those_that_some_members_lack():
    assert FLUX.is_optional("guidance_in.in_layer.weight") and not FLUX.is_optional("img_in.weight")
    assert PIXART.is_optional("csize_embedder.mlp.0.bias") and not PIXART.is_optional("t_block.1.bias")
