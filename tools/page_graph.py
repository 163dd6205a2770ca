"""A workflow as ComfyUI's page saves it, while nodes in it are replaced: links, places and sizes stay right.

Standard library only.
"""

import copy
from typing import Any

from nunchaku_nodes import RULES, WIDGETS, WITHOUT_COUNTERPART, NewNode, Replacement

GAP = 40  # between a node and one that is put below it
TITLE = 30  # height of a title, which lies above the position of its node
REPLACED = " -> "


def replaced_lines(where: str, class_type: str, replacement: Replacement) -> list[str]:
    """What is said of a node that was replaced."""
    to = " + ".join(node.class_type for node in replacement.chain) or "taken out"
    return [f"{where} {class_type}{REPLACED}{to}", *(f"    {note}" for note in replacement.notes)]


def left_line(where: str, class_type: str) -> list[str]:
    """What is said of a node that stays: nothing, unless it is of ComfyUI-nunchaku."""
    if class_type in WITHOUT_COUNTERPART:
        return [f"{where} {class_type} stays, without counterpart: {WITHOUT_COUNTERPART[class_type]}"]
    if class_type.startswith("Nunchaku"):
        return [f"{where} {class_type} stays: this node is not known here."]
    return []


class PageGraph:
    """A graph as the page saves it: the workflow itself, or one of its subgraphs (whose links are objects)."""

    def __init__(self, graph: dict):
        self.graph = graph
        self.nodes: list[dict] = graph["nodes"]
        self.links = {link["id"] if isinstance(link, dict) else link[0]: link for link in graph.get("links") or []}

    def migrate(self) -> list[str]:
        """Replace the nodes in place; return what to say."""
        lines = []
        for node in list(self.nodes):
            class_type = node["type"]
            where = f"node {node['id']}"
            if class_type not in RULES:
                lines += left_line(where, class_type)
                continue
            stored = node.get("widgets_values") or []
            values = stored if isinstance(stored, dict) else dict(zip(WIDGETS[class_type], stored, strict=False))
            replacement = RULES[class_type](values)
            lines += replaced_lines(where, class_type, replacement)
            if replacement.chain:
                self._replace(node, replacement.chain)
            else:
                self._take_out(node)
        self.graph["links"] = list(self.links.values())
        return lines

    # a link: [id, from, its slot, to, its slot, type], or an object

    def _get(self, link: int, end: str) -> tuple[int, int]:
        entry, first = self.links[link], {"origin": 1, "target": 3}[end]
        if isinstance(entry, dict):
            return entry[f"{end}_id"], entry[f"{end}_slot"]
        return entry[first], entry[first + 1]

    def _set(self, link: int, end: str, node: int, slot: int) -> None:
        entry, first = self.links[link], {"origin": 1, "target": 3}[end]
        if isinstance(entry, dict):
            entry[f"{end}_id"], entry[f"{end}_slot"] = node, slot
        else:
            entry[first : first + 2] = [node, slot]

    def _node(self, number: int) -> dict | None:
        return next((node for node in self.nodes if node["id"] == number), None)

    def _new_number(self, kind: str) -> int:
        """The next free id of a node or a link."""
        state, old_style = self.graph.get("state"), {"node": "last_node_id", "link": "last_link_id"}[kind]
        used = [node["id"] for node in self.nodes] if kind == "node" else list(self.links)
        number = 1 + max([n for n in used if isinstance(n, int)] + [self.graph.get(old_style, 0)])
        if isinstance(state, dict):
            number = max(number, state.get(f"last{kind.title()}Id", 0) + 1)
            state[f"last{kind.title()}Id"] = number
        else:
            self.graph[old_style] = number
        return number

    def _drop(self, link: int) -> None:
        node, slot = self._get(link, "origin")
        origin = self._node(node)
        if origin is not None:
            links = origin["outputs"][slot].get("links") or []
            origin["outputs"][slot]["links"] = [other for other in links if other != link] or None
        del self.links[link]

    def _replace(self, node: dict, chain: tuple[NewNode, ...]) -> None:
        linked = {entry["name"]: entry["link"] for entry in node.get("inputs", []) if entry.get("link") is not None}
        readers = (node.get("outputs") or [{}])[0].get("links") or []
        previous, height = node, 0
        for index, new in enumerate(chain):
            target = node if index == 0 else self._below(node, height)
            _become(target, new)
            height += int(_size(target)[1]) + GAP
            chained = new.sockets[0][0] if index else ""  # fed by the node before
            taken = {old: name for old, name in new.renamed.items() if name != chained}
            self._connect_inputs(target, {taken[name]: link for name, link in linked.items() if name in taken})
            if index:
                self._link(previous, target, new.outputs[0][1])
            previous = target
        kept = {name for new in chain for name in new.renamed}
        for name, link in linked.items():
            if name not in kept:
                self._drop(link)
        for link in readers:
            self._set(link, "origin", previous["id"], 0)
        previous["outputs"][0]["links"] = list(readers) or None

    def _below(self, node: dict, height: int) -> dict:
        left, top = _pair(node.get("pos", [0, 0]))
        below = {**copy.deepcopy(node), "id": self._new_number("node"), "pos": [left, top + height + GAP]}
        below.pop("title", None)
        self._move_below_others(below)
        self.nodes.append(below)
        return below

    def _move_below_others(self, node: dict) -> None:
        """Move a new node down until it covers no other one."""
        left, top = node["pos"]
        width, height = _size(node)
        for other in sorted(self.nodes, key=lambda other: _pair(other.get("pos", [0, 0]))[1]):
            (other_left, other_top), (other_width, other_height) = _pair(other.get("pos", [0, 0])), _size(other)
            beside = other_left >= left + width or left >= other_left + other_width
            apart = other_top - TITLE >= top + height or top - TITLE >= other_top + other_height
            if not beside and not apart:
                top = other_top + other_height + TITLE + GAP
        node["pos"] = [left, top]

    def _connect_inputs(self, node: dict, links: dict[str, int]) -> None:
        for slot, entry in enumerate(node["inputs"]):
            if entry["name"] in links:
                entry["link"] = links[entry["name"]]
                self._set(entry["link"], "target", node["id"], slot)

    def _link(self, source: dict, target: dict, kind: str) -> None:
        number = self._new_number("link")
        ends = {"origin_id": source["id"], "origin_slot": 0, "target_id": target["id"], "target_slot": 0, "type": kind}
        as_object = any(isinstance(link, dict) for link in self.links.values())
        self.links[number] = {"id": number, **ends} if as_object else [number, *ends.values()]
        source["outputs"][0]["links"] = [number]
        target["inputs"][0]["link"] = number

    def _take_out(self, node: dict) -> None:
        entering = {entry["name"]: entry.get("link") for entry in node.get("inputs", [])}
        source = entering.pop("model", None)
        for link in [link for link in entering.values() if link is not None]:
            self._drop(link)
        leaving = [link for output in node.get("outputs") or [] for link in output.get("links") or []]
        for link in leaving:
            number, slot = self._get(link, "target")
            reader = self._node(number)
            if source is not None:
                origin, output = self._get(source, "origin")
                self._set(link, "origin", origin, output)
                giver = self._node(origin)
                if giver is not None:
                    giver["outputs"][output]["links"] = [*(giver["outputs"][output].get("links") or []), link]
                continue
            if reader is not None:
                reader["inputs"][slot]["link"] = None
            del self.links[link]
        if source is not None:
            self._drop(source)
        self.nodes.remove(node)


def _pair(value: Any) -> tuple[float, float]:
    """A position or size, which older pages saved as {"0": x, "1": y}."""
    return (value["0"], value["1"]) if isinstance(value, dict) else (value[0], value[1])


def _size(node: dict) -> tuple[float, float]:
    return _pair(node.get("size", [300, 100]))


def _become(node: dict, new: NewNode) -> None:
    """Make a saved node one of another class, without links."""
    node["type"] = new.class_type
    node["properties"] = {"Node name for S&R": new.class_type}
    node["widgets_values"] = list(new.values.values())
    sockets = [{"name": name, "type": kind, "link": None} for name, kind in new.sockets]
    linkable = [name for name in new.renamed.values() if name in new.values]
    node["inputs"] = sockets + [
        {"name": name, "type": _kind(new.values[name]), "link": None, "widget": {"name": name}} for name in linkable
    ]
    node["outputs"] = [{"name": name, "type": kind, "links": None} for name, kind in new.outputs]
    width, height = _size(node)
    node["size"] = [width, max(height, 60 + 26 * len(new.values))]


def _kind(value: Any) -> str:
    return {str: "COMBO", float: "FLOAT", int: "INT"}.get(type(value), "*")
