"""Codes in plain order under names of codes in tiles: told by their groups, and only where that is sure."""

import pytest
import torch
from checkpoint_files import write_tensors
from family_files import qwen_image
from nunchaku_packer import _code_place
from tiny_files import DATA

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.tile_check import check_tiles
from svdquant_pack.svdq_core.errors import CheckpointError

ROWS, COLUMNS = 256, 512


def rounded(scheme: str) -> torch.Tensor:
    """(N, K) codes of random weights, each group scaled by its largest."""
    group, most = (64, 7) if scheme == "int4" else (16, 6)
    weight = torch.randn(ROWS, COLUMNS // group, group, generator=torch.Generator().manual_seed(2))
    units = weight / weight.abs().amax(-1, keepdim=True) * most
    if scheme == "int4":
        return (units.round().to(torch.int16) & 15).to(torch.uint8).view(ROWS, COLUMNS)
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    return ((units.abs()[..., None] - grid).abs().argmin(-1) + 8 * (units < 0)).to(torch.uint8).view(ROWS, COLUMNS)


def packed(codes: torch.Tensor, tiled: bool) -> torch.Tensor:
    flat = torch.zeros(codes.numel(), dtype=torch.uint8)
    if tiled:
        flat[torch.from_numpy(_code_place(ROWS, COLUMNS)).reshape(-1)] = codes.reshape(-1)
    else:
        flat = codes.reshape(-1)
    return (flat[0::2] | flat[1::2] << 4).view(torch.int8).view(ROWS, COLUMNS // 2)


def written(scheme: str, tiled: bool, folder) -> Checkpoint:
    dtype = torch.bfloat16 if scheme == "int4" else torch.float8_e4m3fn
    groups = COLUMNS // (64 if scheme == "int4" else 16)
    tensors = {"a.qweight": packed(rounded(scheme), tiled), "a.wscales": torch.ones(groups, ROWS).to(dtype)}
    return Checkpoint(write_tensors(folder / "x.safetensors", tensors))


@pytest.mark.parametrize("scheme", ["int4", "nvfp4"])
def test_plain_order_is_seen_and_tiles_are_not(scheme, tmp_path):
    check_tiles(written(scheme, True, tmp_path))
    with pytest.raises(CheckpointError, match=r"a\.qweight is not in nunchaku's tiles but in plain order"):
        check_tiles(written(scheme, False, tmp_path))


def test_codes_that_say_nothing_are_let_pass(tmp_path):
    """Random ones fit both orders."""
    file = qwen_image("int4")
    assert read_checkpoint(Checkpoint(write_tensors(tmp_path / "x.safetensors", file.tensors))).layers


@pytest.mark.parametrize("name", ["zimage_nvfp4", "qwen_nvfp4", "krea2_int4"])
def test_files_of_the_tools_pass(name):
    check_tiles(Checkpoint(DATA / "families" / f"{name}.safetensors"))
