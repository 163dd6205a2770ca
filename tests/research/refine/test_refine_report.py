"""The table of a refine measurement: means and paired differences of the captions, hard ones apart."""

import json

import pytest

from svdquant_pack.research.refine.refine_command import parse
from svdquant_pack.research.refine.refine_report import write_report
from svdquant_pack.research.refine.refinements import REFINEMENTS


def figures(errors):
    return {"figures": {"error at 20 steps": errors, "error at 4 steps": errors, "projection": [1.0] * 3}}


def test_differences_are_paired_and_hard_captions_apart(tmp_path):
    recipes = {"best": figures([0.10, 0.20, 0.5]), "blocks": figures([0.08, 0.18, 0.3])}
    recipes = {name: values | {"hard": [False, False, True], "seconds": 7.0} for name, values in recipes.items()}
    (tmp_path / "int4_w4a8.json").write_text(json.dumps({"captions": 2, "recipes": recipes}), encoding="utf-8")
    lines = write_report(tmp_path).read_text(encoding="utf-8").splitlines()
    best, blocks = (next(line for line in lines if line.startswith(f"| {name} ")) for name in ("best", "blocks"))
    assert best.split("|")[2:5] == [" 50.00 ± 0.00 ", "  ", " 15.00 ± 5.00 "]
    assert blocks.split("|")[2:5] == [" 30.00 ± 0.00 ", " -2.00 ± 0.00 ", " 13.00 ± 5.00 "]
    assert not any("nvfp4" in line for line in lines)


def test_what_goes_on_from_another_comes_after_it():
    names = [recipe.name for recipe in REFINEMENTS]
    assert len(set(names)) == len(names)
    assert all(recipe.after in ("", *names[:place]) for place, recipe in enumerate(REFINEMENTS))


def test_unknown_recipes_are_refused():
    with pytest.raises(SystemExit):
        parse(["--recipes", "nothing"])
