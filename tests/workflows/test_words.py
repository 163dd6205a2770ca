"""What users read: every node and input has a tooltip, a help page and Chinese words; nothing is left over."""

import json
import re

import pytest
from comfyui_pack import PACK_NAME
from comfyui_source import find_host
from workflow_files import write
from workflow_files.ui_form import CHOICE_WITH_MORE

from svdquant_pack import ROOT

pytestmark = pytest.mark.skipif(find_host() is None, reason="needs ComfyUI")
DOCS = ROOT / "web" / "docs"


@pytest.fixture(scope="module")
def nodes(furnished):
    return {
        name: info
        for name, info in furnished.object_info().items()
        if info["python_module"] == f"custom_nodes.{PACK_NAME}"
    }


@pytest.fixture(scope="module")
def chinese(furnished):
    return json.loads(furnished.request("/i18n"))["zh"]["nodeDefs"]


def inputs(info: dict) -> dict[str, dict]:
    """Every input that a node can have -> its options, under the names that translations use."""
    found = {}
    for group in ("required", "optional"):
        for name, definition in info["input"].get(group, {}).items():
            found[name.replace(".", "_")] = definition[1] if len(definition) > 1 else {}
            if definition[0] == CHOICE_WITH_MORE:
                for option in definition[1]["options"]:
                    further = inputs({"input": option["inputs"]})
                    found |= {f"{name}_{key}": options for key, options in further.items()}
    return found


def test_every_input_has_a_tooltip(nodes):
    bare = [
        f"{n}.{i}" for n, info in nodes.items() for i, options in inputs(info).items() if not options.get("tooltip")
    ]
    assert not bare


def test_every_node_has_search_words_and_a_description(nodes):
    assert not [name for name, info in nodes.items() if not info.get("search_aliases") or not info["description"]]


def test_every_node_has_help_that_names_its_inputs(nodes):
    for name, info in nodes.items():
        for page in (DOCS / f"{name}.md", DOCS / name / "zh.md"):
            text = page.read_text(encoding="utf-8")
            own = [i for group in ("required", "optional") for i in info["input"].get(group, {})]
            own = {re.sub(r"_\d+$", "_N", i) for i in own}  # rows are described once
            assert not [i for i in own if f"**{i}**" not in text], page
    pages = {path.stem for path in DOCS.glob("*.md")} | {path.parent.name for path in DOCS.glob("*/zh.md")}
    assert pages == set(nodes)


def test_every_word_is_there_in_chinese(nodes, chinese):
    assert {name for name in chinese if name.startswith("SVDQuant")} == set(nodes)
    for name, info in nodes.items():
        words = chinese[name]
        assert words["display_name"] != info["display_name"] and words["description"]
        for key, options in inputs(info).items():
            assert words["inputs"][key]["name"], f"{name}.{key}"
            assert bool(options.get("tooltip")) <= bool(words["inputs"][key].get("tooltip")), f"{name}.{key}"
        assert words["inputs"].keys() <= inputs(info).keys(), name
        assert [int(key) for key in words["outputs"]] == list(range(len(info["output"])))


def test_nodes_are_called_as_the_page_shows_them(furnished):
    """A reader looks for the name on the node: "Load CLIP (Dual)", not DualCLIPLoader."""
    named = {name: info["display_name"] for name, info in furnished.object_info().items() if info["display_name"]}
    texts = {path: path.read_text(encoding="utf-8") for path in (*DOCS.rglob("*.md"), ROOT / "docs" / "moving-over.md")}
    texts |= {workflow.name: workflow.note + workflow.summary for workflow in write.workflows()}
    wrong = [
        (place, name, shown)
        for place, text in texts.items()
        for name, shown in named.items()
        if name != shown and f"**{name}**" in text
    ]
    assert not wrong
