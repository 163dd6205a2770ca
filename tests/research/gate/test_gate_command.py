"""The command at its smallest: two recipes, two replicates, the same pictures, a table."""

import json
from dataclasses import replace

import pytest
import torch

from svdquant_pack import ROOT
from svdquant_pack.research.gate import gate_command as command
from svdquant_pack.research.gate import gate_table, recipes
from svdquant_pack.research.gate.gate_run import FORMS
from svdquant_pack.svdq_core.errors import SVDQuantError

SMALL = ["--captions", "1", "--hard", "1", "--calibration", "1", "--replicates", "2", "--steps", "2", "--device", "cpu"]


def test_the_gate_measures_and_prints(tmp_path, monkeypatch, capsys):
    nearest = recipes.RECIPES["nearest"]

    def broken(run):
        raise ValueError("no layers")

    table = {
        "best": replace(nearest, forms=("w4a4", "w8a8")),
        "nearest": nearest,
        "fails": replace(nearest, make=broken),
    }
    monkeypatch.setattr(command, "RECIPES", table)
    monkeypatch.setattr(gate_table, "RECIPES", table)
    assert command.main([*SMALL, "--forms", "w4a4", "w8a8", "--output", str(tmp_path)]) == 1  # one recipe failed
    out = capsys.readouterr().out
    assert "fails w4a4 FAILED: no layers" in out and "## INT W4A4" in out and "## INT W8A8" in out
    found = json.loads((tmp_path / "gate.json").read_text())
    errors = {(t["recipe"], t["form"], t["replicate"]): torch.tensor(t["error"]) for t in found["runs"]}
    assert len(errors) == 2 + 2 + 2
    # the same weights, the same captions: nothing is left but what was recorded, and rounding to nearest reads none
    assert torch.equal(errors["best", "w4a4", 0], errors["nearest", "w4a4", 0])
    assert errors["best", "w8a8", 0].max() < 0.5 * errors["best", "w4a4", 0].min()
    assert errors["best", "w4a4", 0].min() > 0 and errors["best", "w4a4", 0].max() < 1
    assert (tmp_path / "gate.md").read_text() in out
    assert command.main(["--report", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == (tmp_path / "gate.md").read_text().strip()


def test_earlier_runs_stand_in_the_table_too(tmp_path, capsys):
    settings = {"captions": 1, "hard": 1, "steps": 2, "calibration": 1, "replicates": 2, "machine": "m", "work": "gone"}

    def runs(name, error):
        return [
            {"recipe": name, "form": "w4a4", "replicate": r, "error": [error, error], "layer_error": 0.1}
            for r in (0, 1)
        ]

    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, found in zip(folders, ([*runs("best", 0.1), *runs("fast", 0.3)], runs("best", 0.2)), strict=True):
        folder.mkdir()
        (folder / "gate.json").write_text(json.dumps({"settings": settings, "runs": found}))
    assert command.main(["--report", "--output", str(folders[1]), "--merge", str(folders[0] / "gate.json")]) == 0
    out = capsys.readouterr().out
    assert "20.00 ± 0.00" in out and "+50.0" in out  # best of the second run, fast of the first
    settings["steps"] = 8
    (folders[0] / "gate.json").write_text(json.dumps({"settings": settings, "runs": runs("best", 0.1)}))
    with pytest.raises(SVDQuantError, match="steps 8, here 2"):
        command.main(["--report", "--output", str(folders[1]), "--merge", str(folders[0] / "gate.json")])


def test_recipes_are_listed(capsys):
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes.RECIPES)


def test_a_recipe_is_finished_before_the_next():
    table = {name: recipes.RECIPES[name] for name in ("best", "nearest")}
    works = list(command.planned(table, ["w4a8"], 3))
    assert works == [(name, "w4a8", r) for name in ("best", "nearest") for r in range(3)]


def test_formats_can_be_chosen_for_each_recipe():
    options = command.parse(["--recipes", "best:w8a8", "fast", "best:w4a4"])
    chosen = command.chosen_recipes(options.recipes)
    assert chosen["best"].forms == ("w8a8", "w4a4") and chosen["fast"].forms == recipes.RECIPES["fast"].forms
    for word in ("worst", "atom:w8a8"):
        with pytest.raises(SystemExit):
            command.parse(["--recipes", word])


def test_the_table_of_recipes_is_whole():
    for form, names in recipes.PAPER_ROWS.items():
        assert all(form in recipes.RECIPES[name].forms for name in names)
    assert {name for claim in recipes.CLAIMS for name in claim} <= recipes.RECIPES.keys()
    for name, recipe in recipes.RECIPES.items():
        assert recipe.against in recipes.RECIPES, name
        assert set(recipe.recordings) <= recipes.RECORDERS.keys(), name
        assert recipe.origin in ("ours", "simulated", "tried"), name
        assert set(recipe.forms) <= set(recipes.RECIPES[recipe.against].forms), name
    with pytest.raises(ValueError, match="no such format"):
        replace(recipes.RECIPES["best"], forms=("w2a2",))


def test_start_knows_the_gate():
    text = (ROOT / "research/evaluate/start.py").read_text()
    assert "gate.gate_command" in text and set(FORMS) == {"w4a4", "w4a8", "nvfp4", "w8a8"}
