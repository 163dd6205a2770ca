"""Turns a workflow made with ComfyUI-nunchaku's nodes into one with this pack's and ComfyUI's own.

Both of ComfyUI's forms are understood: what the page saves (subgraphs included) and what /prompt takes. Files,
strengths, links and places of the nodes stay; what has no counterpart is said and stays as it is. Standard
library only.
"""

import argparse
import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

from command_line import typed
from nunchaku_nodes import RULES, NewNode
from page_graph import REPLACED, PageGraph, left_line, replaced_lines


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


def migrate_api(graph: dict[str, dict]) -> list[str]:
    """Replace the nodes of a graph in API form, in place; return what to say."""
    lines = []
    for key, node in list(graph.items()):
        class_type = node["class_type"]
        if class_type not in RULES:
            lines += left_line(f"node {key}", class_type)
            continue
        links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
        values = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        replacement = RULES[class_type](values)
        lines += replaced_lines(f"node {key}", class_type, replacement)
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


def main(argv: list[str]) -> int:
    """Migrate one file; exit code 2 if it is no workflow."""
    parser = argparse.ArgumentParser(
        prog=typed(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="IN.json", help="workflow made for ComfyUI-nunchaku")
    parser.add_argument("target", type=Path, metavar="OUT.json", help="where the new workflow is written")
    options = parser.parse_args(argv)
    try:
        workflow, lines = migrate(json.loads(options.source.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        print(f"{options.source}: {error}")
        return 2
    print("\n".join(lines or ["there is no node of ComfyUI-nunchaku in it"]))
    if not any(REPLACED in line for line in lines):
        print(f"nothing was replaced, so {options.target} was not written; {options.source} can be used as it is")
        return 0
    options.target.parent.mkdir(parents=True, exist_ok=True)
    part = options.target.with_name(f"{options.target.name}.{os.getpid()}.part")
    part.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(options.target)
    print(f"written: {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
