"""The way of a call from ComfyUI's Linear to a launch: few frames in few files, whichever kernel is launched."""

import sys

import pytest
import torch

from svdquant_pack import ROOT
from svdquant_pack.kernels import gpus
from svdquant_pack.kernels.paths import layer_paths, path
from svdquant_pack.nodes.host.model.placeholder import Packed, placeholder
from svdquant_pack.nodes.host.model.quantized_linear import operations
from svdquant_pack.svdq_core.blob import to_blob
from svdquant_pack.svdq_core.layer import QuantizedLayer
from svdquant_pack.svdq_core.quantize import QuantSpec, quantize_part

MOST_FRAMES, MOST_FILES = 8, 5
SIZE = 1024  # from it on Hopper projects down by a launch of its own


def make_linear(compute: str) -> torch.nn.Module:
    part, bias, _ = quantize_part(torch.randn(SIZE, SIZE), torch.zeros(SIZE), QuantSpec(rank=16), "layer")
    blob, layout = to_blob(QuantizedLayer(SIZE, SIZE, (part,), bias))
    linear = operations(compute).Linear(SIZE, SIZE, dtype=torch.bfloat16)
    state = {"weight": placeholder(Packed(blob, layout), torch.bfloat16), "bias": bias.bfloat16()}
    linear.load_state_dict(state)
    return linear


@pytest.fixture
def launches(monkeypatch):
    """What is launched, as the frames of this repository from the Linear's forward on, for tensors of the CPU that
    count as a GPU's."""
    pytest.importorskip("triton")
    from svdquant_pack.kernels.launching import launch as launching
    from svdquant_pack.kernels.step import gemm_w4a8, quantize_act_int8

    found = []

    def launch(kernel, grid, arguments, constants):
        frames, frame = [launching.launch.__code__], sys._getframe(1)
        while frame is not None and frame.f_code.co_name != "_call_impl":
            frames.append(frame.f_code)
            frame = frame.f_back
        found.append((kernel.__name__, [(code.co_filename, code.co_name) for code in reversed(frames)]))

    for module in (gemm_w4a8, quantize_act_int8):
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(path, "why_no_triton", lambda _device: None)
    layer_paths._steps_here.cache_clear()
    yield found
    layer_paths._steps_here.cache_clear()


@pytest.mark.parametrize("gpu", ["sm_89", "sm_90", "sm_100"])
def test_few_frames_in_few_files(gpu, launches, host, monkeypatch):
    row = next(row for row in gpus.GENERATIONS if row.name == gpu)
    from svdquant_pack.kernels.step import quantize_act_int8

    for module in (path, quantize_act_int8):
        monkeypatch.setattr(module, "generation", lambda _device: row)
    with torch.inference_mode():
        make_linear("w4a8")(torch.randn(1, 64, SIZE).bfloat16())
    names = [name for name, _ in launches]
    assert names == ["project_kernel"] * (row.shares_from_k is not None) + [
        "_quantize_tokens_kernel",
        "_gemm_w4a8_kernel",
    ]
    for name, frames in launches:
        assert frames[0][1] == "forward" and frames[-1][1] == "launch"
        assert all(file.startswith(str(ROOT)) for file, _ in frames), frames
        assert len(frames) <= MOST_FRAMES, (name, frames)
        assert len({file for file, _ in frames}) <= MOST_FILES, (name, frames)
