"""From API form to the page's form: every value lands in its widget, every link in its slot."""

import pytest
from workflow_files.note import note_height
from workflow_files.ui_form import UnknownNodeError, to_ui_form, widget_values

ROW = {"required": {"on": ["BOOLEAN", {"default": True}], "name": ["COMBO", {"options": ["a", "b"]}]}}
INFO = {
    "Load": {
        "input": {"required": {"file": [["x", "y"]]}, "optional": {"device": [["default", "cpu"], {}]}},
        "output": ["MODEL", "STRING"],
        "output_name": ["MODEL", "status"],
    },
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "extra": ["LATENT"],
                "note": ["STRING", {"default": "n", "forceInput": True}],
            }
        },
        "output": ["LATENT"],
        "output_name": ["LATENT"],
    },
    "LoadImage": {
        "input": {"required": {"image": [["p.png"], {"image_upload": True}]}},
        "output": ["IMAGE"],
        "output_name": ["IMAGE"],
    },
    "Rows": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "rows": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {"options": [{"key": "0", "inputs": {}}, {"key": "1", "inputs": ROW}]},
                ],
                "last": ["FLOAT", {"default": 0.5}],
            }
        },
        "output": ["MODEL"],
        "output_name": ["MODEL"],
    },
}


def test_values_stand_in_the_pages_order_with_the_pages_own_widgets():
    inputs = {"steps": 8, "model": ["1", 0], "seed": 5, "note": ["1", 1]}
    assert widget_values("Sample", inputs, INFO) == [5, "fixed", 8]
    assert widget_values("LoadImage", {"image": "p.png"}, INFO) == ["p.png", "image"]


def test_what_is_left_out_takes_its_default():
    assert widget_values("Sample", {}, INFO) == [0, "fixed", 20]
    assert widget_values("Load", {"file": "y"}, INFO) == [
        "y",
        None,
    ]  # a combo without default: the page takes the first


def test_a_choice_brings_its_further_inputs():
    inputs = {"rows": "1", "rows.on": False, "rows.name": "b", "last": 0.1}
    assert widget_values("Rows", inputs, INFO) == ["1", False, "b", 0.1]
    assert widget_values("Rows", {"rows": "0"}, INFO) == ["0", 0.5]


def test_unknown_nodes_and_inputs_are_errors():
    with pytest.raises(UnknownNodeError, match="Nothing: the host has no such node"):
        widget_values("Nothing", {}, INFO)
    with pytest.raises(UnknownNodeError, match="Load has no input fiel"):
        widget_values("Load", {"fiel": "x"}, INFO)
    with pytest.raises(UnknownNodeError, match=r"Rows has no input rows\.on"):
        widget_values("Rows", {"rows": "0", "rows.on": True}, INFO)


def graph():
    return {
        "loader": {"class_type": "Load", "_meta": {"title": "The file"}, "inputs": {"file": "y"}},
        "sampler": {
            "class_type": "Sample",
            "inputs": {"model": ["loader", 0], "note": ["loader", 1], "seed": 3, "steps": ["loader", 1]},
        },
    }


def test_links_end_in_the_right_slots():
    form = to_ui_form("w", graph(), INFO)
    assert form["links"] == [[1, 1, 0, 2, 0, "MODEL"], [2, 1, 1, 2, 2, "STRING"], [3, 1, 1, 2, 4, "STRING"]]
    loader, sampler = form["nodes"]
    assert [(i["name"], i["link"]) for i in sampler["inputs"]] == [
        ("model", 1),
        ("extra", None),
        ("note", 2),
        ("seed", None),
        ("steps", 3),
    ]
    assert sampler["inputs"][4]["widget"] == {"name": "steps"} and "widget" not in sampler["inputs"][2]
    assert [(o["name"], o["links"]) for o in loader["outputs"]] == [("MODEL", [1]), ("status", [2, 3])]
    assert sampler["widgets_values"] == [3, "fixed", 20]  # a linked widget keeps its place in the list
    assert (loader["title"], sampler["title"]) == ("The file", "Sample")


def test_note_files_and_stages():
    offers = {"loader": [{"name": "y", "url": "https://example.org/y", "directory": "vae"}]}
    form = to_ui_form(
        "w", graph(), INFO, stages={"loader": "Files", "sampler": "Draw"}, files=offers, sizes=None, note="# Read me"
    )
    note = form["nodes"][-1]
    assert (note["type"], note["widgets_values"], note["id"]) == ("MarkdownNote", ["# Read me"], 3)
    assert form["last_node_id"] == 3 and form["last_link_id"] == 3
    assert [group["title"] for group in form["groups"]] == ["1. Files", "2. Draw"]
    assert form["nodes"][0]["properties"]["models"] == offers["loader"]
    assert "models" not in form["nodes"][1]["properties"]
    assert to_ui_form("w", graph(), INFO)["id"] == form["id"] != to_ui_form("v", graph(), INFO)["id"]


def test_nodes_stand_inside_their_boxes_and_below_the_note():
    form = to_ui_form("w", graph(), INFO, stages={"loader": "Files", "sampler": "Draw"}, note="text")
    for node, group in zip(form["nodes"], form["groups"], strict=False):
        (x, y), (width, height), (left, top, wide, high) = node["pos"], node["size"], group["bounding"]
        assert left < x and top < y and x + width < left + wide and y + height < top + high
    note = form["nodes"][-1]
    assert note["pos"][1] + note["size"][1] < min(group["bounding"][1] for group in form["groups"])
    assert len({tuple(group["bounding"][1::2]) for group in form["groups"]}) == 1, "boxes side by side are equally high"


def test_a_note_is_as_high_as_what_it_says():
    short, long = "one line", "word " * 100
    address = "[page](https://example.org/" + "a" * 400 + ")"
    assert note_height(short) < note_height(long)
    assert note_height(short) == note_height(address), "the address of a link is not shown"
