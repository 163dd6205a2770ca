"""The workflows that users get: up to date, accepted by the host, only with nodes that every user has."""

import itertools
import json

import pytest
from comfyui_pack import PACK_NAME
from comfyui_source import find_host
from workflow_files import write
from workflow_files.arrange import Wire, hidden_wires
from workflow_files.layout import Box

from svdquant_pack import ROOT

pytestmark = pytest.mark.skipif(find_host() is None, reason="needs ComfyUI")
FOLDER = ROOT / "workflows"
NAMES = [workflow.name for workflow in write.workflows()]
AGAIN = "run: python tools/workflow_files/write.py"


@pytest.fixture(scope="module")
def object_info(furnished):
    return furnished.object_info()


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_files_are_what_the_descriptions_give(object_info):
    written = dict(write.contents(object_info))
    old = [
        p.relative_to(ROOT).as_posix() for p, text in written.items() if not p.exists() or p.read_text("utf-8") != text
    ]
    assert not old, f"{old} differ from their descriptions; {AGAIN}"
    found = {*FOLDER.glob("*.json"), *FOLDER.glob("api/*.json"), *FOLDER.glob("demo/ui/*.json")}
    assert not found - written.keys(), "nothing describes these"


@pytest.mark.parametrize("name", NAMES)
def test_the_host_accepts_it(furnished, name):
    assert furnished.submit(read(FOLDER / "api" / f"{name}.json"))  # raises with the host's words if it does not
    furnished.request("/queue", b'{"clear": true}')


@pytest.mark.parametrize("name", NAMES)
def test_only_nodes_that_every_user_has(object_info, name):
    for node in read(FOLDER / "api" / f"{name}.json").values():
        module = object_info[node["class_type"]]["python_module"]
        assert module.startswith(("nodes", "comfy_extras.")) or module == f"custom_nodes.{PACK_NAME}", node[
            "class_type"
        ]


@pytest.mark.parametrize("workflow", write.workflows(), ids=NAMES)
def test_it_opens_with_a_note_that_names_every_file(workflow):
    form = read(FOLDER / f"{workflow.name}.json")
    note = form["nodes"][-1]
    (text,) = note["widgets_values"]
    assert note["type"] == "MarkdownNote" and text.startswith("# Read me first")
    assert note["pos"] == [0, 30], "at the upper left"
    for file in workflow.files:
        assert f"**{file.name}**" in text and f" models/{file.folder}" in text
        there = file.url.rpartition("/")[2]
        assert there in ("", file.name) or f"called **{there}** there: rename" in text
    assert "`" not in text, "with nodes as page elements, code on a coloured note has the colour of its background"
    offered = {entry["name"] for node in form["nodes"] for entry in node["properties"].get("models", [])}
    assert offered == {file.name for file in workflow.files if file.url}


@pytest.mark.parametrize("name", NAMES)
def test_seeds_stay_what_they_are(name):
    form = read(FOLDER / f"{name}.json")
    assert not [node for node in form["nodes"] if "randomize" in node["widgets_values"]]


def test_the_template_browser_lists_them_with_thumbnails(furnished):
    assert sorted(json.loads(furnished.request("/workflow_templates"))[PACK_NAME]) == sorted(NAMES)
    for name in NAMES:
        assert furnished.request(f"/api/workflow_templates/{PACK_NAME}/{name}.json")
        picture = furnished.request(f"/api/workflow_templates/{PACK_NAME}/{name}.jpg")
        assert picture.startswith(b"\xff\xd8") and len(picture) < 60_000, name


@pytest.mark.parametrize("name", NAMES)
def test_no_wire_runs_behind_a_node_and_nodes_lie_apart(name):
    form = read(FOLDER / f"{name}.json")
    nodes = {node["id"]: node for node in form["nodes"]}
    boxes = {number: Box(number, "", *node["size"], ()) for number, node in nodes.items()}
    places = {number: tuple(node["pos"]) for number, node in nodes.items()}
    assert not hidden_wires(boxes, [Wire(*link[1:5]) for link in form["links"]], places)
    for one, other in itertools.combinations(nodes.values(), 2):
        (x, y), (x2, y2) = one["pos"], other["pos"]
        beside = x + one["size"][0] <= x2 or x2 + other["size"][0] <= x
        assert beside or y + one["size"][1] + 30 <= y2 or y2 + other["size"][1] + 30 <= y, (
            one["title"],
            other["title"],
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_opening_view_shows_all_beside_the_bars_of_the_page(name):
    """In a window of 1700 x 950; tests/browser/test_opening_view.py asks the page itself."""
    form = read(FOLDER / f"{name}.json")
    scale, (left, top) = form["extra"]["ds"]["scale"], form["extra"]["ds"]["offset"]
    note = form["nodes"][-1]
    assert (note["pos"][0] + left) * scale > 64 and (note["pos"][1] + top - 30) * scale > 90
    assert scale >= 0.58, "below, the page draws no words"
    frames = [group["bounding"] for group in form["groups"]]
    assert (max(x + width for x, _, width, _ in frames) + left) * scale <= 1700
    assert (max(y + height for _, y, _, height in frames) + top) * scale <= 950


@pytest.mark.parametrize("name", NAMES)
def test_nodes_are_called_as_elsewhere_and_none_is_deprecated(object_info, name):
    for node in read(FOLDER / "api" / f"{name}.json").values():
        info = object_info[node["class_type"]]
        assert node["_meta"]["title"].startswith(info["display_name"] or node["class_type"])
        assert not info.get("deprecated"), node["class_type"]
