"""From API form to the form that ComfyUI's page saves and opens, with every widget value in its place.

The page stores widget values as a list without names, and says nothing when one is missing: order and count come from
the host's own /object_info. Some widgets are the page's and have no counterpart in the API form: a seed is followed by
what to do with it after each run, a picture by its upload button.
"""

import uuid
from typing import Any

from .arrange import Places, Wire, arrange
from .layout import (
    LOADER_WIDTH,
    NODE_WIDTH,
    NOTE_WIDTH,
    SLOT,
    TEXT,
    TITLE,
    WIDE_NODE_WIDTH,
    WIDGET,
    Box,
    frames_of_stages,
)
from .note import below_note, note_height

GROWS = "COMFY_AUTOGROW_V3"  # as many inputs as are linked
CHOICE_WITH_MORE = "COMFY_DYNAMICCOMBO_V3"  # a combo whose choice decides which further inputs there are
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", CHOICE_WITH_MORE)
REPORTS = {  # node -> pixels of what it says on itself after a run
    "SVDQuantModelLoader": 120,
    "SVDQuantLoraLoader": 70,
    "SVDQuantQuantizeModel": 110,
    "SVDQuantExportModel": 70,
}
PICTURES = {"LoadImage": 230, "PreviewImage": 300, "SaveImage": 300}  # pixels of what they show
WIDTHS = {"SVDQuantQuantizeModel": 400, "LoadImage": 260, "SaveImage": 255, "KSampler": 240}
TITLE_EDGE, CHARACTER = 60, 7.1  # pixels beside the title of a node, and of a character of it, about
TEXT_NODES = ("PreviewAny",)
WINDOW = (1700, 950)  # pixels of the page that everything should fit into
BARS = (80, 110)  # pixels at the left and above that the page's own bars cover
SMALLEST_SCALE = 0.58  # below, the page draws no words on its nodes
STAGE_COLOURS = ("#3f789e", "#8A8", "#b58b2a", "#a1309b", "#88A")
_NAMESPACE = uuid.UUID("5cd5a5a0-0f3c-4d9e-9a59-7c2f6d1f4b10")


class UnknownNodeError(ValueError):
    """The host has no such node, or the node no such input."""


def is_widget(definition: list) -> bool:
    """Whether the page shows an input of /object_info as a widget."""
    kind, options = definition[0], definition[1] if len(definition) > 1 else {}
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def definitions(class_type: str, inputs: dict[str, Any], object_info: dict) -> dict[str, list]:
    """The inputs that a node has with these values, in the page's order: required first, then optional.

    Args:
        inputs: in API form; what depends on a choice is called CHOICE.NAME there.
    """
    if class_type not in object_info:
        raise UnknownNodeError(f"{class_type}: the host has no such node.")
    return _expand(object_info[class_type]["input"], inputs, "")


def _expand(groups: dict, inputs: dict[str, Any], prefix: str) -> dict[str, list]:
    known = {}
    for name, definition in {**groups.get("required", {}), **groups.get("optional", {})}.items():
        known[prefix + name] = definition
        if definition[0] == CHOICE_WITH_MORE:
            options = {option["key"]: option["inputs"] for option in definition[1]["options"]}
            chosen = inputs.get(prefix + name, next(iter(options)))
            known |= _expand(options[chosen], inputs, f"{prefix}{name}.")
        if definition[0] == GROWS:
            del known[prefix + name]
            (template,) = (one for group in definition[1]["template"]["input"].values() for one in group.values())
            known |= {given: template for given in inputs if given.startswith(f"{prefix}{name}.")}
    return known


def widget_values(class_type: str, inputs: dict[str, Any], object_info: dict) -> list:
    """What stands in the widgets of a node, in the page's order.

    Args:
        inputs: of the node in API form; links are left out.
    """
    values = []
    known = definitions(class_type, inputs, object_info)
    unknown = inputs.keys() - known.keys()
    if unknown:
        raise UnknownNodeError(f"{class_type} has no input {', '.join(sorted(unknown))}.")
    for name, definition in known.items():
        if not is_widget(definition):
            continue
        options = definition[1] if len(definition) > 1 else {}
        value = inputs.get(name, options.get("default"))
        values.append(options.get("default") if isinstance(value, list) else value)
        if options.get("control_after_generate"):
            values.append("fixed")
        if options.get("image_upload"):
            values.append("image")
    return values


def node_size(node: dict, object_info: dict) -> tuple[int, int]:
    """Width and height of a node in API form, title excluded, about as the page would make it."""
    class_type = node["class_type"]
    known = definitions(class_type, node["inputs"], object_info)
    sockets = sum(not is_widget(definition) for definition in known.values())
    height = SLOT * max(sockets, len(object_info[class_type]["output"]))
    is_loader = "Loader" in class_type or class_type.startswith("SVDQuant")
    width = WIDTHS.get(class_type, LOADER_WIDTH if is_loader else NODE_WIDTH)
    for definition in known.values():
        if is_widget(definition):
            multiline = len(definition) > 1 and definition[1].get("multiline")
            height += TEXT if multiline else WIDGET
            height += WIDGET * bool(len(definition) > 1 and definition[1].get("control_after_generate"))
            width = WIDE_NODE_WIDTH if multiline else width
    if class_type in TEXT_NODES:
        height, width = height + TEXT, WIDE_NODE_WIDTH
    return width, height + 12 + PICTURES.get(class_type, 0) + REPORTS.get(class_type, 0)


def title_width(node: dict) -> int:
    """The width at which the page does not cut a node's title off."""
    return round(TITLE_EDGE + CHARACTER * len(node.get("_meta", {}).get("title", "")))


def to_ui_form(
    name: str,
    api: dict[str, dict],
    object_info: dict,
    *,
    stages: dict[str, str] | None = None,
    files: dict[str, list[dict]] | None = None,
    sizes: dict[str, tuple[int, int]] | None = None,
    note: str = "",
    places: Places | None = None,
    below: str = "",
) -> dict:
    """The workflow as the page saves it.

    Args:
        name: of the workflow; its id is made from it.
        api: API form. Ids that are no numbers get numbers, in order.
        stages: node id -> heading of the box that it stands in; None: no boxes.
        files: node id -> the model files that the page may offer to download: name, url, directory.
        sizes: node id -> width and height, where the usual size does not suit.
        note: Markdown of a note above everything.
        places: node number -> where it stands, the note left out; None: they are looked for, which takes seconds.
        below: the stage that begins a second row.
    """
    numbers = {key: int(key) if key.isdecimal() else index for index, key in enumerate(api, 1)}
    links = _links(api, numbers, object_info)
    boxes = []
    for key, node in api.items():
        sources = tuple(numbers[value[0]] for value in node["inputs"].values() if isinstance(value, list))
        stage = stages[key] if stages else ""
        width, height = (sizes or {}).get(key) or node_size(node, object_info)
        boxes.append(Box(numbers[key], stage, max(width, title_width(node)), height, sources))
    positions, rectangles = _placed(boxes, links, note, places, below)
    nodes = [
        _node(
            numbers[key],
            order,
            node,
            positions=positions,
            box=boxes[order],
            links=links,
            object_info=object_info,
            files=(files or {}).get(key, []),
        )
        for order, (key, node) in enumerate(api.items())
    ]
    if note:
        nodes.append(_note(max(numbers.values()) + 1, len(nodes), note))
    groups = []
    for index, (stage, rectangle) in enumerate(rectangles if stages else []):
        title = f"{index + 1}. {stage}" if len(rectangles) > 1 else stage
        colour = STAGE_COLOURS[index % len(STAGE_COLOURS)]
        groups.append(
            {"id": index, "title": title, "bounding": rectangle, "color": colour, "font_size": 24, "flags": {}}
        )
    return {
        "id": str(uuid.uuid5(_NAMESPACE, name)),
        "revision": 0,
        "last_node_id": max(node["id"] for node in nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": opening_view(nodes, groups)},
        "version": 0.4,
    }


def _placed(boxes: list[Box], links: list[list], note: str, places: Places | None, below: str):
    """Places and frames, below the note."""
    if places is None or places.keys() != {box.id for box in boxes}:
        places = arrange(boxes, [Wire(*link[1:5]) for link in links], below)
    top = below_note(note)
    moved = {number: (x, y + top) for number, (x, y) in places.items()}
    return moved, frames_of_stages(boxes, moved, below)


def opening_view(nodes: list[dict], groups: list[dict]) -> dict:
    """Scale and offset at which a whole workflow is seen, beside the bar of the page and below the one above."""
    right = max(node["pos"][0] + node["size"][0] for node in nodes)
    bottom = max(node["pos"][1] + node["size"][1] for node in nodes)
    frames = [group["bounding"] for group in groups]
    right = max([right, *(x + width for x, _, width, _ in frames)])
    bottom = max([bottom, *(y + height for _, y, _, height in frames)])
    scale = min(1.0, (WINDOW[0] - BARS[0]) / right, (WINDOW[1] - BARS[1]) / bottom)
    scale = max(round(scale - 0.005, 2), SMALLEST_SCALE)
    return {"scale": scale, "offset": [round(BARS[0] / scale), round(BARS[1] / scale)]}


def _links(api: dict, numbers: dict[str, int], object_info: dict) -> list[list]:
    links: list[list] = []
    for key, node in api.items():
        names = _sockets(node, object_info)
        for slot, name in enumerate(names):
            value = node["inputs"].get(name)
            if isinstance(value, list):
                kind = object_info[api[value[0]]["class_type"]]["output"][value[1]]
                links.append([len(links) + 1, numbers[value[0]], value[1], numbers[key], slot, kind])
    return links


def _sockets(node: dict, object_info: dict) -> list[str]:
    known = definitions(node["class_type"], node["inputs"], object_info)
    sockets = [name for name, definition in known.items() if not is_widget(definition)]
    return sockets + [name for name, definition in known.items() if is_widget(definition)]


def _node(number, order, node, *, positions, box, links, object_info, files) -> dict:
    class_type = node["class_type"]
    info, known = object_info[class_type], definitions(class_type, node["inputs"], object_info)
    inputs = []
    for slot, name in enumerate(_sockets(node, object_info)):
        kind = known[name][0]
        link = next((entry[0] for entry in links if entry[3:5] == [number, slot]), None)
        socket = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "link": link}
        inputs.append({**socket, "widget": {"name": name}} if is_widget(known[name]) else socket)
    outputs = []
    for index, kind in enumerate(info["output"]):
        starting = [entry[0] for entry in links if entry[1:3] == [number, index]]
        outputs.append({"name": info["output_name"][index], "type": kind, "links": starting or None})
    properties: dict[str, Any] = {"Node name for S&R": class_type}
    if files:
        properties["models"] = files
    return {
        "id": number,
        "type": class_type,
        "title": node.get("_meta", {}).get("title", class_type),
        "pos": list(positions[number]),
        "size": [box.width, box.height],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": properties,
        "widgets_values": widget_values(class_type, node["inputs"], object_info),
    }


def _note(number: int, order: int, text: str) -> dict:
    return {
        "id": number,
        "type": "MarkdownNote",
        "title": "Read me first",
        "pos": [0, TITLE],
        "size": [NOTE_WIDTH, note_height(text)],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }
