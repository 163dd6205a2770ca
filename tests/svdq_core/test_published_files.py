"""Sizes computed from shapes equal those of real files."""

import re
from dataclasses import replace

import pytest
import torch
from tiny_files import DATA

from svdquant_pack import ROOT
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


def models_of_the_readme() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [line for line in text.partition("## Which models\n")[2].partition("\n## ")[0].splitlines() if "`" in line]


def test_files_that_the_readme_names_are_published():
    """Every file of its table is one that a family's description knows, of a precision that it is published in."""
    known = {
        f"svdq-{precision}_r{rank}-{model.name}.safetensors"
        for family in FAMILIES
        for model in family.published
        for precision in model.precisions
        for rank in model.ranks
    }
    rows = [line for line in models_of_the_readme() if line.startswith("|")]
    named = {name for line in rows for name in re.findall(r"`(svdq-[^`…]+\.safetensors)`", line)}
    assert len(named) > 10 and named - known == set()
    for line in rows:
        if "INT4 only" in line:
            (name,) = re.findall(r"svdq-int4_r\d+-(.+?)\.safetensors", line)
            assert f"svdq-fp4_r32-{name}.safetensors" not in known


def test_the_readme_has_every_family_that_files_exist_of():
    rows = "\n".join(models_of_the_readme())
    for family in FAMILIES:
        files = [model.name for model in family.published if model.precisions]
        assert not files or any(f"-{name}.safetensors" in rows for name in files), family.title


def test_every_template_that_the_readme_names_is_there():
    cells = [line.split("|")[3] for line in models_of_the_readme() if line.startswith("|")]
    names = {name for cell in cells for name in re.findall(r"`([a-z][\w.-]+)`", cell)}
    assert len(names) > 10
    missing = [name for name in names if not (ROOT / "workflows" / f"{name}.json").exists()]
    assert missing == []
