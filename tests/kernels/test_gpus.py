"""The table of GPUs: every row is whole, and every chip finds its row."""

import pytest

from svdquant_pack.kernels import gpus
from svdquant_pack.kernels.gpus import GENERATIONS, OTHER, generation_of_chip


@pytest.mark.parametrize("row", GENERATIONS, ids=lambda row: row.name)
def test_a_row_is_whole(row):
    assert row.has_kernels and row.cards and row.target is not None
    assert row.evidence.startswith(("timed on", "compiled, never run"))
    assert all(generation_of_chip(chip) is row for chip in row.chips)
    assert (row.target.backend == "cuda") == all(isinstance(chip, tuple) for chip in row.chips)
    assert (row.target.int8_product is None) == (row.int8_rate == 0), "a rate without an instruction, or the reverse"
    assert not row.wgmma or row.target.int8_product == "wgmma"
    assert row.shares_from_k is None or row.max_fused_rank == 0, "two ways to project down"


def test_no_chip_stands_in_two_rows():
    chips = [chip for row in GENERATIONS for chip in row.chips]
    assert len(chips) == len(set(chips)) == len(gpus._BY_CHIP)
    assert len({row.name for row in GENERATIONS}) == len(GENERATIONS)


@pytest.mark.parametrize(
    ("chip", "name"),
    [
        ((8, 7), "sm_80"),
        ((8, 8), "sm_80"),
        ((7, 5), "other"),
        ((13, 0), "other"),
        ("gfx1151", "gfx1100"),
        ("", "other"),
    ],
)
def test_chips_find_their_row(chip, name):
    assert generation_of_chip(chip).name == name


def test_an_unknown_amd_gpu_runs_16_bit_paths():
    row = generation_of_chip("gfx1250")
    assert row is not OTHER and row.has_kernels and row.slow_int8 is not None
