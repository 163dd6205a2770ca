"""Every cell of the table of families and formats: what is read is the model that the file was made of."""

import numpy as np
import pytest
from dialect_cells import ALL, CELLS, FUSED, WRITTEN, table
from family_asserts import assert_file
from model_compare import differences

from svdquant_pack import ROOT
from svdquant_pack.svdq_core.checkpoint import Checkpoint, read_checkpoint
from svdquant_pack.svdq_core.checkpoint.dense_read import DenseModel
from svdquant_pack.svdq_core.checkpoint.formats import FORMATS
from svdquant_pack.svdq_core.convert import convert

BF16 = 2**-8  # of a value: how far bfloat16 may be from it
ELSEWHERE = ("flux2", "chroma", "sdxl", "ernie", "minimax_h3", "qwen_image")  # written in test_family_files.py


@pytest.mark.parametrize(("family", "title"), CELLS, ids=lambda value: value)
def test_read(family, title, tmp_path):
    cell = CELLS[family, title](family, tmp_path)
    assert_file(read_checkpoint(Checkpoint(cell.path, cell.base)), cell.file, cell.close)


# zimage and krea2 through comfy-native: below, since modules apart do not share their smoothing
WAYS = [(name, to) for name in ALL if name not in ELSEWHERE for to in ("nunchaku", "svdquant")]
WAYS += [("flux", "comfy"), ("pixart", "comfy")]


@pytest.mark.parametrize(("family", "to"), WAYS)
def test_written_without_loss(family, to, tmp_path):
    assert set(WRITTEN) == set(FORMATS)
    cell = CELLS[family, "nunchaku" if to != "comfy" else "comfy-native"](family, tmp_path)  # which has no nvfp4
    convert(cell.path, tmp_path / "out.safetensors", to)
    before, after = (read_checkpoint(Checkpoint(path)) for path in (cell.path, tmp_path / "out.safetensors"))
    assert differences(after, before) == []


@pytest.mark.parametrize("family", ["zimage", "krea2"])
def test_joined_layers_through_comfy_native_and_back(family, tmp_path):
    """Pieces of one nunchaku layer are Linears of their own there, and become that layer again."""
    from checkpoint_files import write_tensors

    file = FUSED[family]("int4")
    source = write_tensors(tmp_path / "in.safetensors", file.tensors)
    convert(source, tmp_path / "comfy.safetensors", "comfy")
    convert(tmp_path / "comfy.safetensors", tmp_path / "back.safetensors", "nunchaku")
    assert_file(read_checkpoint(Checkpoint(tmp_path / "comfy.safetensors")), file)
    before, after = Checkpoint(source), Checkpoint(tmp_path / "back.safetensors")
    assert [name for name in before if name not in after or not before[name].equal(after[name])] == []


@pytest.mark.parametrize("family", ALL)
def test_written_as_the_dense_model(family, tmp_path):
    cell = CELLS[family, "Nunchaku Lite"](family, tmp_path)
    convert(cell.path, tmp_path / "dense.safetensors", "bf16")
    dense = DenseModel(Checkpoint(tmp_path / "dense.safetensors"))
    for host, truth in cell.file.weights.items():
        found = dense[f"{host}.weight"].double().numpy()
        assert np.all(np.abs(found - truth) <= BF16 * np.abs(truth) + 1e-6), host


def test_the_table_of_the_docs_is_made_of_the_list():
    text = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert table() in text, "run: python tests/dialect_cells.py, and put what it prints into docs/compatibility.md"
