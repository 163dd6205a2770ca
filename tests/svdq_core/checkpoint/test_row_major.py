"""vLLM-Omni's files, made of nunchaku's as its converters do: both versions, and what happens if one is misread."""

import pytest
import torch
from family_files import qwen_image
from tiny_files import DATA
from vllm_files import CONFIG, converted, h3_folder, write_folder, zimage_tensors

from svdquant_pack.svdq_core.apply_layer import dense_weight
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError

ZIMAGE = DATA / "families" / "zimage_nvfp4.safetensors"


def test_the_second_version_is_read(tmp_path):
    file, folder = h3_folder(tmp_path, conversion={"layout": "row_major", "model_family": "minimax_h3"})
    model = read_checkpoint(Checkpoint(folder))
    assert model.layers.keys() == file.weights.keys()
    for name, layer in model.layers.items():
        truth = torch.from_numpy(file.weights[name])
        assert float((dense_weight(layer) - truth).abs().max() / truth.abs().max()) < 1e-6, name


@pytest.mark.parametrize("mark", ["config", "metadata"])
def test_one_mark_is_enough(mark, tmp_path):
    config = CONFIG if mark == "config" else None
    conversion = {"layout": "row_major"} if mark == "metadata" else None
    file, folder = h3_folder(tmp_path, config, conversion)
    assert len(read_checkpoint(Checkpoint(folder)).layers) == len(file.weights)


def test_the_first_version_is_read(tmp_path):
    config = {"model": None, "default": CONFIG}
    checkpoint = Checkpoint(ZIMAGE)
    tensors = zimage_tensors({name: checkpoint[name] for name in checkpoint})
    folder = write_folder(tmp_path / "z", tensors, config, {"layout": "row_major"})
    model, truth = read_checkpoint(Checkpoint(folder)), read_checkpoint(Checkpoint(ZIMAGE))
    assert model.layers.keys() == truth.layers.keys()
    for name, layer in truth.layers.items():
        assert torch.equal(dense_weight(model.layers[name]), dense_weight(layer)), name


def test_without_a_mark_it_is_not_read_as_tiles(tmp_path):
    """Its codes are uint8, and nunchaku's are int8."""
    _, folder = h3_folder(tmp_path, config=None)
    with pytest.raises(CheckpointError, match="qweight is uint8"):
        read_checkpoint(Checkpoint(folder))


def test_an_order_that_nothing_tells_is_not_guessed(tmp_path):
    tensors = converted(qwen_image("nvfp4", "plain").tensors, ".none", True)
    folder = write_folder(tmp_path / "q", tensors, CONFIG, None)
    with pytest.raises(CheckpointError, match="nothing says which version of its converter"):
        read_checkpoint(Checkpoint(folder))


def test_pieces_and_biases_of_the_second_version(tmp_path):
    file = qwen_image("nvfp4", "plain")
    conversion = {"layout": "row_major", "model_family": "qwen_image"}
    folder = write_folder(tmp_path / "q", converted(file.tensors, ".none", True), CONFIG, conversion)
    model = read_checkpoint(Checkpoint(folder))
    for name, layer in model.layers.items():
        truth, bias = torch.from_numpy(file.weights[name]), torch.from_numpy(file.biases[name])
        assert float((dense_weight(layer) - truth).abs().max() / truth.abs().max()) < 1e-6, name
        assert torch.allclose(layer.bias.double(), bias, atol=1e-5), name
    assert model.layers["transformer_blocks.0.attn.to_v"].input == "transformer_blocks.0.attn.to_qkv"
