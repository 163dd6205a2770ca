"""The dense equivalent: the host's names, everything undone, the same in blocks as in one piece."""

import pytest
import torch
from checkpoint_files import TINY, host_dense_samples, read_tensors, write_pixart
from compare import assert_same

from svdquant_pack.svdq_core.apply_layer import dense_bias, dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, dense_write, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.dense_write import DenseFormat
from svdquant_pack.svdq_core.checkpoint.formats import save_model
from svdquant_pack.svdq_core.errors import ArchitectureError, CheckpointError


def written(model, path):
    save_model(path, model, DenseFormat(model.architecture))
    return read_tensors(path)


def test_values_are_those_of_the_dense_oracle(tmp_path):
    tensors, metadata = written(read_checkpoint(Checkpoint(TINY["int4"])), tmp_path / "x.safetensors")
    for name, (index, expected) in host_dense_samples().items():
        found = tensors[name].flatten()[index]
        assert found.dtype == torch.bfloat16
        off = 2**-8 if "mod" in name and name.endswith("bias") else 0  # see test_nunchaku_read
        assert float((found.float() - expected).abs().max()) <= 2**-8 * float(expected.abs().max()) + off, name
    assert "quantization_config" not in metadata and "svdquant_written_by" in metadata


@pytest.mark.parametrize("precision", TINY)
@pytest.mark.parametrize("values", [256, 5 * 1280, 1 << 30], ids=["a row", "five rows", "all"])
def test_blocks_make_the_whole(precision, values, tmp_path, monkeypatch):
    monkeypatch.setattr(dense_write, "BLOCK_VALUES", values)
    model = read_checkpoint(Checkpoint(TINY[precision]))
    tensors, _ = written(model, tmp_path / "x.safetensors")
    for name in (
        "double_blocks.0.img_mlp.2",
        "single_blocks.0.linear1",
        "single_blocks.0.linear2",
        "double_blocks.0.img_mod.lin",
    ):
        layer = model.layers[name]
        # a matrix product over fewer rows may sum in another order: the last bit of bfloat16
        for end, expected in (("weight", dense_weight(layer)), ("bias", dense_bias(layer))):
            difference = (tensors[f"{name}.{end}"].float() - expected).abs()
            assert bool((difference <= 2**-8 * expected.abs() + 1e-6).all()), name


def test_float16_models_become_bfloat16(tmp_path):
    model = read_checkpoint(Checkpoint(write_pixart(tmp_path / "x.safetensors")))
    tensors, _ = written(model, tmp_path / "y.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert_same(tensors["t_block.1.weight"], model.plain["t_block.1.weight"].bfloat16())


def test_the_result_is_an_unquantized_model_for_this_pack(tmp_path):
    written(read_checkpoint(Checkpoint(TINY["int4"])), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="no SVDQuant layers"):
        read_checkpoint(Checkpoint(tmp_path / "x.safetensors"))


def test_a_value_beyond_bfloat16_is_refused(tmp_path):
    model = read_checkpoint(Checkpoint(TINY["int4"]))
    model.plain["img_in.bias"] = torch.full((256,), 3.4e38)
    with pytest.raises(ArchitectureError, match=r"img_in\.bias reaches 3\.4e\+38, more than bfloat16 holds"):
        written(model, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []
