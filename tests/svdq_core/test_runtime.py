"""Which mode runs a model, and the line that says so."""

import pytest
import torch
from tiny_files import DATA

from svdquant_pack.kernels.gpus import GENERATIONS, OTHER
from svdquant_pack.kernels.layer_call import COMPUTE_MODES
from svdquant_pack.svdq_core import runtime
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.runtime import describe_model, prefers_cudnn_attention, resolve_compute


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_auto_is_a_real_mode_with_a_reason(precision):
    mode, reason = resolve_compute("auto", precision, torch.device("cpu"))
    assert mode in COMPUTE_MODES and reason


@pytest.mark.parametrize("choice", COMPUTE_MODES)
def test_a_users_choice_stands(choice):
    assert resolve_compute(choice, "int4", torch.device("cpu"))[0] == choice


def test_description_names_what_a_user_asks():
    model = read_checkpoint(Checkpoint(DATA / "flux_tiny_nvfp4_r32.safetensors"))
    text = describe_model("a file.safetensors", model, "w4a8", "because")
    for word in ("a file.safetensors", "FLUX.1", "nvfp4", "rank 32", "13 quantized layers", "w4a8", "because"):
        assert word in text


def test_cudnn_attention_is_for_the_gpus_where_it_is_known_to_be_faster(monkeypatch):
    assert not prefers_cudnn_attention(torch.device("cpu"))
    found = []
    for row in (*GENERATIONS, OTHER):
        monkeypatch.setattr(runtime, "generation", lambda device, row=row: row)
        if prefers_cudnn_attention(torch.device("cuda", 0)):
            found.append(row)
    assert found == [row for row in GENERATIONS if row.cudnn_attention] and any(row.wgmma for row in found)
