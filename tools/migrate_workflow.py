"""Turns a workflow made with ComfyUI-nunchaku's FLUX nodes into one with this pack's and core nodes.

usage: python dev.py migrate-workflow IN.json OUT.json

Both of ComfyUI's forms are understood: what the page saves (subgraphs included) and what /prompt takes. Files,
strengths, links and places of the nodes stay; what has no counterpart is said and stays as it is. Standard library
only.
"""

import argparse
import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

from nunchaku_nodes import RULES, WIDGETS, WITHOUT_COUNTERPART, NewNode, Replacement

GAP = 40  # between a node and one that is put below it


class NoWorkflowError(ValueError):
    """The file holds no workflow."""


def migrate(workflow: Any) -> tuple[dict, list[str]]:
    """The workflow with its nodes replaced, and one line for each thing that a user should know.

    Raises:
        NoWorkflowError: it is in neither of ComfyUI's forms.
    """
    migrated = copy.deepcopy(workflow)
    if not isinstance(migrated, dict):
        raise NoWorkflowError("this is JSON, but no workflow")
    if isinstance(migrated.get("nodes"), list):
        lines = PageGraph(migrated).migrate()
        for subgraph in migrated.get("definitions", {}).get("subgraphs", []):
            lines += PageGraph(subgraph).migrate()
        return migrated, lines
    graph = migrated.get("prompt", migrated)
    if graph and all(isinstance(node, dict) and "class_type" in node for node in graph.values()):
        return migrated, migrate_api(graph)
    raise NoWorkflowError("this is neither a saved workflow nor one in API form")


def _lines(where: str, class_type: str, replacement: Replacement) -> list[str]:
    to = " + ".join(node.class_type for node in replacement.chain) or "taken out"
    return [f"{where} {class_type} -> {to}", *(f"    {note}" for note in replacement.notes)]


def _left(where: str, class_type: str) -> list[str]:
    if class_type in WITHOUT_COUNTERPART:
        return [f"{where} {class_type} stays, without counterpart: {WITHOUT_COUNTERPART[class_type]}"]
    if class_type.startswith("Nunchaku"):
        return [f"{where} {class_type} stays: this node is not known here."]
    return []


# ------------------------------------------------------------------------------------------------------- API form


def migrate_api(graph: dict[str, dict]) -> list[str]:
    """Replace the nodes of a graph in API form, in place; return what to say."""
    lines = []
    for key, node in list(graph.items()):
        class_type = node["class_type"]
        if class_type not in RULES:
            lines += _left(f"node {key}", class_type)
            continue
        links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
        values = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        replacement = RULES[class_type](values)
        lines += _lines(f"node {key}", class_type, replacement)
        last = _put_chain(graph, key, node, replacement.chain, links)
        _relink(graph, [key, 0], last, {f"{key}.{i}" for i in range(1, len(replacement.chain))} | {key})
    return lines


def _put_chain(graph: dict, key: str, old: dict, chain: tuple[NewNode, ...], links: dict) -> list:
    """Put the new nodes, the first under the old one's id; return what the old output's readers read now."""
    if not chain:
        del graph[key]
        return links.get("model", [])
    source: list = []
    for index, new in enumerate(chain):
        inputs = dict(new.values)
        inputs |= {new.renamed[name]: link for name, link in links.items() if name in new.renamed}
        if index:
            inputs[new.sockets[0][0]] = source
        name = key if index == 0 else f"{key}.{index}"
        meta = {"_meta": old["_meta"]} if "_meta" in old and index == 0 else {}
        graph[name] = {"class_type": new.class_type, **meta, "inputs": inputs}
        source = [name, 0]
    return source


def _relink(graph: dict, old: list, new: list, but: set[str]) -> None:
    for key, node in graph.items():
        if key in but or old == new:
            continue
        for name, value in list(node["inputs"].items()):
            if value == old and new:
                node["inputs"][name] = list(new)
            elif value == old:
                del node["inputs"][name]


# ------------------------------------------------------------------------------------------------------ page form


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
                lines += _left(where, class_type)
                continue
            stored = node.get("widgets_values") or []
            values = stored if isinstance(stored, dict) else dict(zip(WIDGETS[class_type], stored, strict=False))
            replacement = RULES[class_type](values)
            lines += _lines(where, class_type, replacement)
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
        self.nodes.append(below)
        return below

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


def main(argv: list[str]) -> int:
    """Migrate one file; exit code 2 if it is no workflow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="IN", help="workflow made for ComfyUI-nunchaku")
    parser.add_argument("target", type=Path, metavar="OUT", help="where the new workflow is written")
    options = parser.parse_args(argv)
    try:
        workflow, lines = migrate(json.loads(options.source.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        print(f"{options.source}: {error}")
        return 2
    options.target.parent.mkdir(parents=True, exist_ok=True)
    part = options.target.with_name(f"{options.target.name}.{os.getpid()}.part")
    part.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(options.target)
    print("\n".join(lines or ["there was no node of ComfyUI-nunchaku in it; the copy is unchanged"]))
    print(f"written: {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
