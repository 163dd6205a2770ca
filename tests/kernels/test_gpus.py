"""The table of GPUs: every row is whole, and every chip finds its row."""

from types import ModuleType

import pytest

from svdquant_pack.kernels import gpus
from svdquant_pack.kernels.gpus import GENERATIONS, OTHER, generation_of_chip


@pytest.mark.parametrize("row", GENERATIONS, ids=lambda row: row.name)
def test_a_row_is_whole(row):
    assert row.has_kernels and row.cards
    assert row.evidence.startswith(("timed on", "compiled, never run", "not compiled"))
    assert all(generation_of_chip(chip) is row for chip in row.chips)
    assert row.shares_from_k is None or row.max_fused_rank == 0, "two ways to project down"
    assert (row.target is None) == (row.evidence == "not compiled")
    if row.target is None:
        return
    assert (row.target.backend == "cuda") == all(isinstance(chip, tuple) for chip in row.chips)
    assert (row.target.int8_product is None) == (row.int8_rate == 0), "a rate without an instruction, or the reverse"
    assert not row.wgmma or row.target.int8_product == "wgmma"


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
        ((99, 0), "other"),
        ("gfx1151", "gfx1100"),
        ("", "other"),
    ],
)
def test_chips_find_their_row(chip, name):
    assert generation_of_chip(chip).name == name


def test_an_unknown_amd_gpu_runs_16_bit_paths():
    row = generation_of_chip("gfx1250")
    assert row is not OTHER and row.has_kernels and row.slow_int8 is not None


@pytest.fixture
def broken(monkeypatch):
    """A Triton whose import does something, and what is then said about it."""

    def make(happens):
        def import_module(_name):
            if isinstance(happens, BaseException):
                raise happens
            return happens

        monkeypatch.setattr(gpus, "import_module", import_module)
        gpus.why_no_import.cache_clear()
        return gpus.why_no_import()

    yield make
    monkeypatch.undo()
    gpus.why_no_import.cache_clear()


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (ModuleNotFoundError("No module named 'triton'", name="triton"), "is not installed"),
        (ModuleNotFoundError("No module named 'setuptools'", name="setuptools"), "needs setuptools"),
        (OSError("libtriton.so: undefined symbol"), "OSError: libtriton.so"),
        (SystemExit("no GPU"), "SystemExit: no GPU"),
        (AttributeError("partially initialized"), "AttributeError"),
        (ModuleType("triton"), "holds no Triton"),
    ],
)
def test_a_triton_that_does_not_import_is_none(happens, words, broken):
    assert words in broken(happens)


def test_a_triton_that_imports_is_one(broken):
    module = ModuleType("triton")
    module.jit = lambda function: function
    assert broken(module) is None
