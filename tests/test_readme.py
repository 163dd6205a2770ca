"""What the README says about the code is there: tests that it names, files and folders that it points to."""

import ast
import re

import pytest

from svdquant_pack import ROOT

READMES = ("README.md", "README.zh-CN.md")
DOCS = tuple(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))
PLACES = ("tests", "workflows", "docs", "web")


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def functions_of(file):
    found = list((ROOT / "tests").rglob(file))
    assert found, f"there is no {file}"
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in found]
    return {node.name for tree in trees for node in ast.walk(tree) if hasattr(node, "name")}


@pytest.mark.parametrize("readme", [*READMES, *DOCS])
def test_every_test_it_names_exists(readme):
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", text_of(readme)))
    if readme == "docs/compatibility.md":
        assert len(named) > 15
    missing = [f"{file}::{name}" for file, name in sorted(named) if name not in functions_of(file)]
    assert not missing


@pytest.mark.parametrize("readme", [*READMES, *DOCS])
def test_every_link_leads_somewhere(readme):
    links = re.findall(r"\]\(([^)#]+)\)", text_of(readme))
    assert links or readme in DOCS
    missing = [link for link in links if "://" not in link and not (ROOT / readme).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("readme", READMES)
def test_it_is_short(readme):
    assert len(text_of(readme).splitlines()) <= 200


@pytest.mark.parametrize("readme", [*READMES, *DOCS])
def test_every_file_it_names_with_its_folder_exists(readme):
    named = set(re.findall(rf"`((?:{'|'.join(PLACES)})/[\w./-]+\.\w+)`", text_of(readme)))
    assert not [name for name in named if not (ROOT / name).exists()]


def test_both_languages_speak_of_the_same_commands_files_and_pictures():
    def named(readme):
        text = text_of(readme)
        commands = set(re.findall(r"python dev\.py ([a-z-]+)", text))
        files = set(re.findall(r"`(svdq-[\w.-]+\.safetensors)`", text))
        rows = [line for line in text.splitlines() if line.startswith("| ") and "`svdq-" in line]
        return commands, files, len(rows), set(re.findall(r"\]\((docs/pictures/[^)]+)\)", text))

    assert named(READMES[0]) == named(READMES[1])


def test_every_message_explained_in_one_language_is_explained_in_the_other():
    def messages(readme, title):
        section = text_of(readme).partition(f"## {title}\n")[2].partition("\n## ")[0]
        rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ") and "`" in line]
        return {message for row in rows for message in re.findall(r"`([^`]+)`", row)}

    english = messages(READMES[0], "When something goes wrong")
    assert len(english) > 5 and english == messages(READMES[1], "出错时")
