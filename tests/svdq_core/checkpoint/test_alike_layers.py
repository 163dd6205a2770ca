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
    with pytest.raises(CheckpointError, match=rf"{NAME}: .*neither wtscale nor wcscales, and \d+ other layers"):
        read_changed("nvfp4", without(f"{NAME}.wtscale"), tmp_path)


def test_layers_without_outer_scales_are_counted(tmp_path):
    other = "transformer_blocks.0.out_proj_context"
    with pytest.raises(CheckpointError, match="nor have 1 more layers"):
        read_changed("nvfp4", without(f"{NAME}.wtscale", f"{other}.wtscale"), tmp_path)
