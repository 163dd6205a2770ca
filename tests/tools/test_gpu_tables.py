"""The README's table of GPUs is made from the table in kernels/gpus.py, and nobody changes it by hand."""

import gpu_tables
import pytest

from svdquant_pack import ROOT
from svdquant_pack.kernels import gpus
from svdquant_pack.kernels.paths import path


@pytest.mark.parametrize("file", gpu_tables.tables())
def test_the_table_is_as_it_is_made(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert gpu_tables.with_table(text, gpu_tables.tables()[file]) == text, "run `python tools/gpu_tables.py`"


def test_an_old_triton_where_they_are_made_changes_nothing(monkeypatch):
    before = gpu_tables.tables()
    monkeypatch.setattr("triton.__version__", "3.0.0")
    path.why_too_old.cache_clear()
    try:
        assert gpu_tables.tables() == before
    finally:
        path.why_too_old.cache_clear()


def test_every_card_stands_in_every_table():
    for file, lines in gpu_tables.tables().items():
        missing = [card for row in gpus.GENERATIONS for card in row.cards.split(", ") if card not in "\n".join(lines)]
        assert not missing, file


def test_a_row_says_what_auto_would_run():
    rows = {line.split(" | ")[0]: line for line in gpu_tables.by_file(gpu_tables.ENGLISH)}
    assert rows["| H100, H200"] == "| H100, H200 | 8-bit | 8-bit | w4a8 |"
    assert rows["| B200, B300, Jetson Thor"].endswith("| 16-bit products | native 4-bit | w4a16 (INT4), w4a4 (NVFP4) |")
    assert rows["| others, or no Triton"].endswith("| plain torch, slower | plain torch, slower | w4a16 |")


def test_a_new_generation_appears(monkeypatch):
    new = gpus.Generation("sm_990", "RTX 99", ((99, 0),), fp4=True, int8_rate=4, target=gpus.Target(990, 32, 1, None))
    monkeypatch.setattr(gpus, "GENERATIONS", (*gpus.GENERATIONS, new))
    lines = gpu_tables.by_file(gpu_tables.CHINESE)
    assert any("RTX 50、" in line and "、RTX 99 |" in line for line in lines), "it does what sm_120 does"


def test_a_missing_table_is_an_error():
    with pytest.raises(ValueError, match="expected one table"):
        gpu_tables.with_table("no table\n", ["| GPU |", "|---|"])
