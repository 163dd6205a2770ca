"""The journal: what was put comes back bit for bit; what does not belong or is damaged does not count."""

import subprocess
import sys

import pytest
import torch
from pack import ROOT

from svdquant_pack.svdq_core.errors import SVDQuantError
from svdquant_pack.svdq_core.quantize import LayerPlan, QuantSpec, quantize_layer
from svdquant_pack.svdq_core.quantize.finished import Finished
from svdquant_pack.svdq_core.quantize.journal import Journal, journal_folder

NAME = "single_blocks.3.linear2"


@pytest.fixture(scope="module")
def finished():
    plan = LayerPlan.stack_columns(128, (128, 256), (False, True))
    weight = torch.randn(128, 384, generator=torch.Generator().manual_seed(0))
    layer, reports = quantize_layer(weight, None, plan, QuantSpec(rank=16, score_tokens=32), NAME)
    return Finished(NAME, layer, reports=tuple(reports))


def test_what_was_put_comes_back(tmp_path, finished):
    journal = Journal(tmp_path / "a.safetensors", "x")
    journal.put(finished)
    found = Journal(tmp_path / "a.safetensors", "x").get(NAME)
    assert found.reports == finished.reports
    assert [p.act_unsigned for p in found.layer.parts] == [False, True]
    blob, layout = finished.layer.to_blob()
    assert torch.equal(found.layer.to_blob()[0], blob)
    assert found.layer.to_blob()[1] == layout
    assert torch.equal(found.layer.bias, finished.layer.bias)


def test_a_layer_in_16_bits_comes_back(tmp_path):
    plain = {"a.weight": torch.randn(3, 5).bfloat16(), "a.bias": torch.randn(3).bfloat16()}
    journal = Journal(tmp_path / "a.safetensors", "x")
    journal.put(Finished("a", plain=plain, kept="as asked"))
    found = journal.get("a")
    assert found.layer is None and found.kept == "as asked" and found.reports == ()
    assert found.plain.keys() == plain.keys()
    assert all(torch.equal(found.plain[n], plain[n]) for n in plain)
    assert found.pieces.keys() == plain.keys()


def test_other_settings_and_damage_do_not_count(tmp_path, finished):
    target = tmp_path / "a.safetensors"
    Journal(target, "x").put(finished)
    assert Journal(target, "x").names() == {NAME}
    file = journal_folder(target) / f"{NAME}.safetensors"
    (journal_folder(target) / "other.safetensors").write_bytes(file.read_bytes()[:-100])
    assert Journal(target, "x").names() == {NAME}
    assert Journal(target, "y").names() == set()
    assert not list(journal_folder(target).glob("*.safetensors"))


def test_a_second_run_to_the_same_name_is_refused(tmp_path):
    target = tmp_path / "a.safetensors"
    with Journal(target, "x").locked():
        program = (
            "import sys; sys.path.insert(0, 'tests'); import pack; from pathlib import Path\n"
            "from svdquant_pack.svdq_core.quantize.journal import Journal\n"
            f"with Journal(Path({str(target)!r}), 'x').locked(): pass"
        )
        run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
        assert "another run is writing this file" in run.stderr
    with Journal(target, "x").locked():
        pass


def test_what_is_not_there_or_damaged_is_named(tmp_path):
    journal = Journal(tmp_path / "a.safetensors", "x")
    with pytest.raises(SVDQuantError, match=r"b\.safetensors: damaged"):
        journal.get("b")
    journal.remove()
    assert not journal.folder.exists()
