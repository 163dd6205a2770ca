"""What the README says about the code is there: tests that it names, files and folders that it points to."""

import ast
import re

import pytest
from pack import ROOT

READMES = ("README.md", "README.zh-CN.md")
PLACES = ("tests", "workflows", "docs", "web")


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def functions_of(file):
    found = list((ROOT / "tests").rglob(file))
    assert len(found) == 1, f"{file}: {len(found)} files of this name"
    return {node.name for node in ast.walk(ast.parse(found[0].read_text(encoding="utf-8"))) if hasattr(node, "name")}


@pytest.mark.parametrize("readme", READMES)
def test_every_test_it_names_exists(readme):
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", text_of(readme)))
    if readme == READMES[0]:
        assert len(named) > 15
    missing = [f"{file}::{name}" for file, name in sorted(named) if name not in functions_of(file)]
    assert not missing


@pytest.mark.parametrize("readme", READMES)
def test_every_link_leads_somewhere(readme):
    links = re.findall(r"\]\(([^)#]+)\)", text_of(readme))
    assert links
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


@pytest.mark.parametrize("readme", READMES)
def test_every_file_it_names_with_its_folder_exists(readme):
    named = set(re.findall(rf"`((?:{'|'.join(PLACES)})/[\w./-]+\.\w+)`", text_of(readme)))
    assert not [name for name in named if not (ROOT / name).exists()]
