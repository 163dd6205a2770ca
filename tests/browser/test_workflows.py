"""Every workflow file, dragged onto the page: it opens complete, and says the same as its API form."""

import json

import pytest
from workflow_files import write

from svdquant_pack import ROOT

FOLDER = ROOT / "workflows"
NAMES = [workflow.name for workflow in write.workflows()]
DEMO = [path.stem for path in sorted((FOLDER / "demo").glob("*.json"))]


@pytest.fixture(scope="module", autouse=True)
def fresh(page):
    page.show()


@pytest.fixture(scope="module")
def object_info(page):
    return page.server.object_info()


def inputs(api: dict) -> dict:
    """What the host would compute: class and inputs of each node, without titles."""
    return {key: (node["class_type"], node["inputs"]) for key, node in api.items()}


def numbered(api: dict) -> dict:
    """A graph with named nodes under the numbers that the page's form gives them."""
    numbers = {key: str(index) for index, key in enumerate(api, 1)}

    def value(given):
        return [numbers[given[0]], given[1]] if isinstance(given, list) else given

    return {
        numbers[key]: {**node, "inputs": {name: value(v) for name, v in node["inputs"].items()}}
        for key, node in api.items()
    }


def completed(api: dict, nodes: dict) -> dict:
    """A graph with the defaults of optional widgets that it does not name: the page sends them, a client need not.

    Args:
        nodes: what the host says about its nodes.
    """

    def defaults(node):
        optional = nodes[node["class_type"]]["input"].get("optional", {})
        return {name: about[1]["default"] for name, about in optional.items() if "default" in (about[1:] or [{}])[0]}

    return {key: {**node, "inputs": defaults(node) | node["inputs"]} for key, node in api.items()}


def wrong_values(nodes: list[dict]) -> list[str]:
    """Widgets with a value that the page does not offer; it says nothing about them itself."""
    wrong = []
    for node in nodes:
        for widget in node["widgets"]:
            value, where = widget["value"], f"{node['type']}.{widget['name']}"
            if widget["type"] == "combo" and widget["options"] is not None and value not in widget["options"]:
                wrong.append(f"{where} = {value!r} is not offered")
            if widget["type"] == "number" and not (
                isinstance(value, (int, float)) and widget["min"] <= value <= widget["max"]
            ):
                wrong.append(f"{where} = {value!r} is out of range")
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_complete(page, object_info, name):
    nodes = page.drag_file(FOLDER / f"{name}.json")
    assert not [node["type"] for node in nodes if not node["known"]]
    stored = {
        str(n["id"]): n["size"] for n in json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    }
    for node in nodes:  # the page makes nodes as large as they must be; the layout has to have known
        width, height = stored[node["id"]]
        assert node["size"][0] <= width + 20 and node["size"][1] <= height + 40, node["type"]
    assert page.complaint() == ""
    page.picture(f"workflow-{name}")
    assert not wrong_values(nodes)
    api = json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))
    assert inputs(page.api_form()) == inputs(completed(api, object_info))


@pytest.mark.parametrize("name", DEMO)
def test_the_demos_workflows_open_too(page, object_info, name):
    nodes = page.drag_file(FOLDER / "demo" / "ui" / f"{name}.json")
    assert not [node["type"] for node in nodes if not node["known"]]
    api = write.for_the_page(json.loads((FOLDER / "demo" / f"{name}.json").read_text(encoding="utf-8")))
    assert inputs(page.api_form()) == inputs(completed(numbered(api), object_info))


def test_a_missing_node_would_be_seen(page, tmp_path):
    form = json.loads((FOLDER / "flux.1-dev.json").read_text(encoding="utf-8"))
    form["nodes"][0]["type"] = "SVDQuantNodeThatDoesNotExist"
    (tmp_path / "broken.json").write_text(json.dumps(form))
    nodes = page.drag_file(tmp_path / "broken.json")
    assert [node["type"] for node in nodes if not node["known"]] == ["SVDQuantNodeThatDoesNotExist"]
    assert "SVDQuantNodeThatDoesNotExist" in page.complaint()


def test_a_shifted_value_would_be_seen(page, tmp_path):
    form = json.loads((FOLDER / "flux.1-dev.json").read_text(encoding="utf-8"))
    sampler = next(node for node in form["nodes"] if node["type"] == "KSampler")
    sampler["widgets_values"].remove("fixed")
    (tmp_path / "shifted.json").write_text(json.dumps(form))
    assert wrong_values(page.drag_file(tmp_path / "shifted.json"))
