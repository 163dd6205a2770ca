"""Records: one process for each piece of work, whole files, one file of everything."""

import json
import math

import torch

from svdquant_pack.research.evaluate.record import Records, read_results, to_lists, to_tensor


def records(tmp_path):
    made = Records(tmp_path / "work", tmp_path / "out")
    made.clear()
    return made


def test_work_is_claimed_once(tmp_path):
    first, second = records(tmp_path), Records(tmp_path / "work", tmp_path / "out")
    assert first.claim("a") and not second.claim("a") and second.claim("b")
    first.clear()
    assert second.claim("a")


def test_what_is_finished_is_published(tmp_path):
    made = records(tmp_path)
    made.write("b", {"x": [1.5, None]})
    made.publish()
    made.write("a", {"x": []})
    assert read_results(tmp_path / "out") == {"b": {"x": [1.5, None]}}
    made.publish()
    assert list(read_results(tmp_path / "out")) == ["a", "b"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]


def test_figures_survive(tmp_path):
    figures = {"error": torch.tensor([0.123456, math.nan, math.inf]), "error_by_step": torch.rand(3, 2)}
    lists = json.loads(json.dumps(to_lists(figures)))
    assert lists["error"] == [0.1235, None, None]
    back = to_tensor(lists["error_by_step"])
    assert torch.allclose(back.float(), figures["error_by_step"], rtol=1e-3)
    assert to_tensor(lists["error"]).isnan().tolist() == [False, True, True]
