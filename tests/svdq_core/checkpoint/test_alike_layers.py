"""What one layer of a file lacks and the others have is damage, not a layer that does without."""

import pytest
from checkpoint_files import TINY, read_tensors, write_tensors

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError

NAME = "transformer_blocks.0.out_proj"


def read_changed(precision, change, tmp_path):
    tensors, metadata = read_tensors(TINY[precision])
    change(tensors)
    return read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", tensors, metadata)))


def without(*names):
    def change(tensors):
        for name in names:
            del tensors[name]

    return change


def test_one_layer_without_an_outer_scale(tmp_path):
    with pytest.raises(CheckpointError, match=rf"{NAME}: .*neither wcscales nor wtscale, and \d+ other layers"):
        read_changed("nvfp4", without(f"{NAME}.wtscale"), tmp_path)


@pytest.mark.parametrize("precision", TINY)
def test_one_layer_without_a_branch(precision, tmp_path):
    """Which would be read as one of rank 0."""
    with pytest.raises(CheckpointError, match=f"{NAME}: it has no low-rank branch"):
        read_changed(precision, without(f"{NAME}.lora_down", f"{NAME}.lora_up"), tmp_path)


@pytest.mark.parametrize("precision", TINY)
def test_a_file_whose_layers_all_do_without_a_branch_is_read(precision, tmp_path):
    def change(tensors):
        for name in [name for name in tensors if name.endswith((".lora_down", ".lora_up"))]:
            del tensors[name]

    assert read_changed(precision, change, tmp_path).ranks == [0]


def test_layers_without_outer_scales_are_counted(tmp_path):
    other = "transformer_blocks.0.out_proj_context"
    with pytest.raises(CheckpointError, match="nor have 1 more layers"):
        read_changed("nvfp4", without(f"{NAME}.wtscale", f"{other}.wtscale"), tmp_path)
