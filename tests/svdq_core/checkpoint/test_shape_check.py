"""Shapes against each other: what only converts finds out, too, what ComfyUI would."""

import pytest
from checkpoint_files import TINY, read_tensors, write_tensors

from svdquant_pack.svdq_core.checkpoint.shape_check import ShapeCheck
from svdquant_pack.svdq_core.convert import convert
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.models import FLUX, ZIMAGE

NORM = "transformer_blocks.0.norm_k.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:64], r"shape \(64,\), expected \(128\) since double_blocks.0.img_attn.norm.query_norm.weight"),
        (lambda t: t.view(1, -1), r"shape \(1, 128\), expected \(any\)"),
    ],
    ids=["shorter", "of two dimensions"],
)
def test_a_tensor_unlike_its_siblings_is_refused_before_anything_is_written(change, message, tmp_path):
    tensors, metadata = read_tensors(TINY["int4"])
    path = write_tensors(tmp_path / "x.safetensors", tensors | {NORM: change(tensors[NORM]).contiguous()}, metadata)
    with pytest.raises(CheckpointError, match=message) as error:
        convert(path, tmp_path / "y.safetensors", "bf16")
    assert NORM in str(error.value) and not (tmp_path / "y.safetensors").exists()


def test_blocks_of_a_kind_have_the_same_shapes_also_where_none_is_described():
    check, name = ShapeCheck(ZIMAGE), "adaLN_modulation.0.weight"
    assert ZIMAGE.shape_of(f"layers.0.{name}", 128) is None
    check.check(f"layers.0.{name}", (512, 16), "x")
    check.check(f"noise_refiner.0.{name}", (512, 8), "x")
    with pytest.raises(CheckpointError, match=f"8 inputs .* as layers.0.{name} has, which is the same in another"):
        check.check(f"layers.1.{name}", (512, 8), "x")


def test_widths_are_found_out_and_held():
    check = ShapeCheck(FLUX)
    check.check("double_blocks.0.img_attn.proj.weight", (256, 256), "x")
    check.check("double_blocks.0.img_mlp.0.weight", (1024, 256), "x")
    with pytest.raises(CheckpointError, match=r"128 inputs and 256 outputs, expected 256 and 256"):
        check.check("double_blocks.0.txt_attn.proj.weight", (256, 128), "x")
    with pytest.raises(CheckpointError, match=r"shape \(256,\), expected \(1024\)"):
        check.check("double_blocks.0.img_mlp.0.bias", (256,), "x")


def test_the_same_model_may_be_read_twice():
    check = ShapeCheck(FLUX)
    for _ in range(2):
        check.check("double_blocks.0.img_attn.norm.query_norm.weight", (128,), "x")
        check.check("double_blocks.1.img_attn.norm.query_norm.weight", (128,), "x")
