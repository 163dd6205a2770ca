"""Sizes computed from shapes equal those of real files."""

from dataclasses import replace

import pytest
import torch
from tiny_files import DATA

from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.models import ARCHITECTURES, FAMILIES, FLUX, MINIMAX_H3
from svdquant_pack.svdq_core.published_files import example_name, family_lines, flux_gib, published_bytes, weight_bytes


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_bytes_equal_those_of_a_file(precision):
    model = read_checkpoint(Checkpoint(DATA / f"flux_tiny_{precision}_r32.safetensors"))
    width = model.plain["img_in.weight"].shape[0]
    counts = FLUX.count_blocks([*model.plain, *model.layers], "host")
    blocks = tuple(f"{block.host}." for block in FLUX.blocks)
    outside = sum(tensor.numel() for name, tensor in model.plain.items() if not name.startswith(blocks))
    computed = weight_bytes(FLUX, width, counts=counts, outside=outside, precision=precision, rank=32)
    assert computed == pytest.approx(
        model.nbytes, rel=0.02
    )  # norms, kept tensors and nvfp4 channel scales are left out


# GB that download pages show
SHOWN = [
    ("qwen_image", "nvfp4", 32, 11.9),
    ("qwen_image", "nvfp4", 128, 13.1),
]


@pytest.mark.parametrize(("name", "precision", "rank", "shown"), SHOWN)
def test_sizes_of_other_families(name, precision, rank, shown):
    family = ARCHITECTURES[name]
    assert published_bytes(family, family.published[0], precision, rank) / 1e9 == pytest.approx(shown, abs=0.06)


def test_minimax_h3_without_what_the_second_file_holds():
    """The published file has the quantized Linears of its 50 blocks, 10.58 GB."""
    (model,) = MINIMAX_H3.published
    blocks = replace(MINIMAX_H3.blocks[1], linears=MINIMAX_H3.blocks[1].linears[:-1])
    alone = replace(MINIMAX_H3, blocks=(blocks,))
    assert published_bytes(alone, replace(model, outside=0), "int4", 32) / 1e9 == pytest.approx(10.58, abs=0.03)


def test_the_second_file_is_named_with_the_first():
    lines = family_lines(torch.device("cpu"))
    (h3,) = [line for line in lines if line.startswith("MiniMax H3: ")]
    assert "svdq-int4_r32-minimax-h3-fl2va.safetensors (10.6 GB)" in h3
    assert "also a 16-bit MiniMax H3 file" in h3 and "minimax_h3_fl2va_pruned_bf16.safetensors" in h3


def test_every_family_with_files_has_its_line():
    lines = family_lines(torch.device("cpu"))
    titles = [family.title for family in FAMILIES if any(model.precisions for model in family.published)]
    assert [line.partition(":")[0] for line in lines] == [*titles, "text encoder T5-XXL"]
    for line in lines[:-1]:
        assert " GB)" in line and "svdq-int4_r" in line, line
    (klein,) = [line for line in lines if line.startswith("FLUX.2")]
    assert klein.count("GB)") == 2  # two sizes of one family


def test_both_ways_of_counting_agree():
    model = FLUX.published[0]
    assert published_bytes(FLUX, model, "nvfp4", 32) == flux_gib("nvfp4", 32) * 2**30


def test_published_flux_files():
    # 6.77 GB is what the download page of the int4 r32 file shows
    assert flux_gib("int4", 32) * 2**30 / 1e9 == pytest.approx(6.77, abs=0.02)
    assert flux_gib("nvfp4") > flux_gib("int4")
    assert 0.6 < flux_gib("int4", 128) - flux_gib("int4", 32) < 0.75
    assert example_name(torch.device("cpu"), "flux.1-schnell") == "svdq-int4_r32-flux.1-schnell.safetensors"
