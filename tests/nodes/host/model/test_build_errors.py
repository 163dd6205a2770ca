"""A file whose sizes ComfyUI's model does not have is refused with the names of file and tensor."""

import pytest
import torch
from checkpoint_files import TINY, read_tensors, write_tensors

from svdquant_pack.nodes.host.model.build import load_model
from svdquant_pack.nodes.host.model.build_errors import building
from svdquant_pack.svdq_core.errors import ArchitectureError, CheckpointError


@pytest.mark.parametrize("size", [0, 17, 256])
def test_a_norm_of_another_size(host, tmp_path, size):
    tensors, metadata = read_tensors(TINY["int4"])
    tensors["transformer_blocks.0.norm_q.weight"] = torch.ones(size).bfloat16()
    path = write_tensors(tmp_path / "odd.safetensors", tensors, metadata)
    both = rf"odd\.safetensors: \S+norm_k\S* has shape \(128,\), expected .* since \S+query_norm\S+ has {size}"
    with pytest.raises(CheckpointError, match=both):
        load_model(str(path), "w4a16")


@pytest.mark.parametrize("size", [0, 17, 256])
def test_all_norms_of_another_size(host, tmp_path, size):
    tensors, metadata = read_tensors(TINY["int4"])
    norms = [name for name, tensor in tensors.items() if ".norm_" in name and tensor.shape == (128,)]
    path = write_tensors(
        tmp_path / "odd.safetensors", tensors | {n: torch.ones(size).bfloat16() for n in norms}, metadata
    )
    sentence = rf"odd\.safetensors: double_blocks\.0\.img_attn\.norm\.\S+ has shape \[{size}\], expected \[128\] in "
    with pytest.raises(ArchitectureError, match=sentence):
        load_model(str(path), "w4a16")


def test_a_linear_of_another_size_names_the_file(host, tmp_path):
    tensors, metadata = read_tensors(TINY["int4"])
    tensors["proj_out.weight"], tensors["proj_out.bias"] = torch.ones(68, 256).bfloat16(), torch.ones(68).bfloat16()
    path = write_tensors(tmp_path / "odd.safetensors", tensors, metadata)
    with pytest.raises(ArchitectureError, match=r"odd\.safetensors: final_layer\.linear: the file has "):
        load_model(str(path), "w4a16")


@pytest.mark.parametrize("error", [AssertionError(), KeyError("img_in"), ZeroDivisionError("by zero"), ValueError("x")])
def test_what_comfyui_raises_about_sizes_is_said_in_words(error):
    sentence = rf"^a: ComfyUI cannot make a model of it \({type(error).__name__}"
    with pytest.raises(ArchitectureError, match=sentence), building("a"):
        raise error


def test_errors_of_a_device_pass():
    with pytest.raises(RuntimeError, match="CUDA error"), building("a"):
        raise RuntimeError("CUDA error: an illegal memory access")
