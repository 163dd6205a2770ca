"""A layer: what does not fit is named."""

import pytest
import torch
from tiny_files import DATA

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.errors import CheckpointError
from svdquant_pack.svdq_core.layer import Part, with_tensors


@pytest.fixture(scope="module", params=["int4", "nvfp4"])
def model(request):
    return read_checkpoint(Checkpoint(DATA / f"flux_tiny_{request.param}_r32.safetensors"))


def draw_part(**changes) -> Part:
    tensors = {
        "qweight": torch.zeros(128, 64, dtype=torch.int8),
        "wscales": torch.ones(2, 128, dtype=torch.bfloat16),
        "smooth_factor": torch.ones(128, dtype=torch.bfloat16),
        "proj_down": torch.zeros(128, 16, dtype=torch.bfloat16),
        "proj_up": torch.zeros(128, 16, dtype=torch.bfloat16),
    }
    return with_tensors(Part("int4", (0, 128), (0, 128), False, tensors), **changes)


def test_a_right_part_passes():
    draw_part().check("file: layer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wscales": torch.ones(1, 128, dtype=torch.bfloat16)}, ["wscales", "(1, 128)", "(2, 128)"]),
        ({"wscales": torch.ones(2, 128).to(torch.float8_e4m3fn)}, ["wscales", "float8_e4m3fn", "bfloat16"]),
        ({"smooth_factor": torch.full((128,), float("nan"))}, ["smooth_factor", "NaN"]),
        ({"proj_down": torch.zeros(128, 32, dtype=torch.bfloat16)}, ["proj_down", "(128, 32)", "(128, 16)"]),
        ({"strange": torch.zeros(1)}, ["strange", "unexpected"]),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    with pytest.raises(CheckpointError) as error:
        draw_part(**changes).check("some file: some layer")
    assert all(word in str(error.value) for word in ["some file: some layer", *words])


def test_nan_in_fp8_scales_is_found():
    scales = torch.ones(8, 128).to(torch.float8_e4m3fn)
    scales.view(torch.uint8)[3, 3] = 0x7F
    part = draw_part(wscales=scales)
    with pytest.raises(CheckpointError, match="wscales holds NaN"):
        Part("nvfp4", part.rows, part.columns, False, part.tensors).check("file")
