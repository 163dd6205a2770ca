"""The journal: what was put comes back bit for bit; what does not belong or is damaged does not count."""

import subprocess
import sys

import pytest
import torch

from svdquant_pack import ROOT
from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize import PartReport
from svdquant_pack.svdq_core.quantize.journal import Journal, journal_folder

NAME = "single_blocks.3.linear2"
REPORT = PartReport(NAME, (0, 128), (0, 256), "int4", 16, "none", "nearest", 0.125, True)


def tensors():
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (4, 6), generator=g, dtype=torch.int8)
    return {"a.qweight": codes, "a.wscales": torch.randn(2, 4, generator=g).bfloat16(), "a.empty": torch.zeros(4, 0)}


def test_what_was_put_comes_back(tmp_path):
    stored = tensors()
    Journal(tmp_path / "a.safetensors", "x").put(NAME, stored, [REPORT])
    entry = Journal(tmp_path / "a.safetensors", "x").get(NAME)
    assert entry.name == NAME and entry.reports == (REPORT,) and entry.kept == ""
    assert {output.name for output in entry.outputs} == stored.keys()
    for output in entry.outputs:
        assert torch.equal(output.tensor(), stored[output.name]) and output.dtype == stored[output.name].dtype


def test_a_later_entry_takes_the_place_of_an_earlier_one(tmp_path):
    journal = Journal(tmp_path / "a.safetensors", "x")
    journal.put(NAME, tensors(), [REPORT])
    journal.put(NAME, {"a.weight": torch.ones(3)}, kept="as asked")
    entry = journal.get(NAME)
    assert [output.name for output in entry.outputs] == ["a.weight"]
    assert entry.reports == () and entry.kept == "as asked"


def test_other_settings_and_damage_do_not_count(tmp_path, caplog):
    target = tmp_path / "a.safetensors"
    Journal(target, "x").put(NAME, tensors())
    assert Journal(target, "x").names() == {NAME}
    file = journal_folder(target) / f"{NAME}.layer"
    file.with_name("other.layer").write_bytes(file.read_bytes()[:-10])
    assert Journal(target, "x").names() == {NAME}
    with caplog.at_level("INFO", "svdquant"):
        assert Journal(target, "y").names() == set()
    assert "1 finished layers" in caplog.text
    assert not list(journal_folder(target).glob("*.layer"))


def test_no_layer_looks_like_a_model(tmp_path):
    Journal(tmp_path / "a.safetensors", "x").put(NAME, tensors())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_second_run_to_the_same_name_is_refused(tmp_path):
    target = tmp_path / "a.safetensors"
    with Journal(target, "x").locked():
        program = (
            "import sys; sys.path.insert(0, 'tools'); from pathlib import Path\n"
            "from svdquant_pack.svdq_core.quantize.journal import Journal\n"
            f"with Journal(Path({str(target)!r}), 'x').locked(): pass"
        )
        run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
        assert "another run is writing this file" in run.stderr
    with Journal(target, "x").locked():
        pass


def test_what_is_not_there_is_named(tmp_path):
    journal = Journal(tmp_path / "a.safetensors", "x")
    with pytest.raises(SVDQuantError, match=r"b\.layer: there is no such file"):
        journal.get("b")
    journal.remove()
    assert not journal.folder.exists()
