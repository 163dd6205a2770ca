"""Writes workflows/*.json (to drag onto ComfyUI's page) and workflows/api/*.json (to post) from the descriptions.

usage: python tools/workflow_files/write.py [--host COMFYUI] [--arrange [NAME ...]]

Starts a ComfyUI to ask it for its nodes. Run it after changing a description or a node's inputs;
with --arrange where nodes were added, taken out or have another size.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workflow_files import families, flux, making
from workflow_files.graph import Workflow
from workflow_files.note import below_note, read_me_first
from workflow_files.ui_form import to_ui_form

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflows"
DEMO = FOLDER / "demo"
ORDER_FILE = ROOT / "web" / "template_order.js"
PLACES = Path(__file__).with_name("places.json")


def workflows() -> list[Workflow]:
    """All workflows, as described."""
    return [*flux.workflows(), *families.workflows(), *making.workflows()]


def template_order() -> str:
    """web/template_order.js with the names of all workflows, in order."""
    text = ORDER_FILE.read_text(encoding="utf-8")
    names = "".join(f'  "{workflow.name}",\n' for workflow in workflows())
    return re.sub(r"(?<=const ORDER = \[\n).*?(?=\];)", names, text, flags=re.DOTALL)


def read_places() -> dict[str, dict[int, tuple[int, int]]]:
    """Where the nodes of each workflow stand: what `--arrange` found, or somebody moved."""
    if not PLACES.exists():
        return {}
    stored = json.loads(PLACES.read_text(encoding="utf-8"))
    return {name: {int(n): (x, y) for n, (x, y) in places.items()} for name, places in stored.items()}


def arrange_anew(object_info: dict, names: list[str]) -> None:
    """Look for the places of the nodes of some workflows anew, of all if none is named, and keep them."""
    kept = {name: places for name, places in read_places().items() if names and name not in names}
    _write_places(kept)
    forms = {workflow.name: ui_form(workflow, object_info) for workflow in workflows()}
    for name, api in demo_graphs().items():
        forms[f"demo/{name}"] = demo_ui_form(name, api, object_info)
    _write_places({name: _places_of(form) for name, form in forms.items()})


def _places_of(form: dict) -> dict[int, tuple[int, int]]:
    *nodes, note = form["nodes"]
    top = below_note(note["widgets_values"][0])
    return {node["id"]: (node["pos"][0], node["pos"][1] - top) for node in nodes}


def demo_graphs() -> dict[str, dict]:
    """The demo's workflows, which are described in API form only."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DEMO.glob("*.json"))}


def _write_places(found: dict[str, dict[int, tuple[int, int]]]) -> None:
    lines = [f' "{name}": {json.dumps(places)}' for name, places in found.items()]
    PLACES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def ui_form(workflow: Workflow, object_info: dict) -> dict:
    """One workflow as the page saves it."""
    offers = {
        str(node.id): [
            {"name": file.name, "url": file.url, "directory": file.folder} for file in node.files if file.url
        ]
        for node in workflow.nodes
    }
    stages = {str(node.id): node.stage for node in workflow.nodes}
    sizes = {str(node.id): node.size for node in workflow.nodes if node.size}
    api = workflow.api_form(object_info)
    note = read_me_first(workflow)
    return to_ui_form(
        workflow.name,
        api,
        object_info,
        stages=stages,
        files=offers,
        sizes=sizes,
        note=note,
        places=read_places().get(workflow.name),
        below=workflow.below,
    )


def demo_ui_form(name: str, api: dict, object_info: dict) -> dict:
    """A workflow of the demo as the page saves it."""
    note = (
        f"# Read me first: the demo, {name}\n\nIt runs with the small models and nodes of the pack's demo folder. A "
        "git clone of the pack has them: **python demo/install.py COMFYUI** puts them into your ComfyUI; restart it "
        "afterwards. There is no text encoder: the captions that the model knows are in demo/scenes.py.\n"
    )
    places = read_places().get(f"demo/{name}")
    return to_ui_form(f"demo/{name}", for_the_page(api), object_info, note=note, places=places)


def for_the_page(api: dict) -> dict:
    """A graph without the nodes that hand a text to a client: on the page, nodes show their texts on themselves."""
    return {key: node for key, node in api.items() if node["class_type"] != "PreviewAny"}


def contents(object_info: dict) -> Iterator[tuple[Path, str]]:
    """(path, text) of every file that is written."""
    for workflow in workflows():
        yield FOLDER / f"{workflow.name}.json", as_text(ui_form(workflow, object_info))
        yield FOLDER / "api" / f"{workflow.name}.json", as_text(workflow.api_form(object_info))
    yield ORDER_FILE, template_order()
    for name, api in demo_graphs().items():
        yield DEMO / "ui" / f"{name}.json", as_text(demo_ui_form(name, api, object_info))


def as_text(data: dict) -> str:
    """JSON as it stands in the files."""
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def main(argv: list[str]) -> int:
    """Write all files."""
    from comfyui_server import ComfyUIServer
    from comfyui_source import HOST_FOLDER, check_host

    sys.path.insert(0, str(ROOT / "demo"))
    import install

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=Path(os.environ.get("COMFYUI_PATH", HOST_FOLDER)))
    parser.add_argument(
        "--arrange", nargs="*", metavar="NAME", help="look for the places of nodes anew, here or in all"
    )
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as base:
        install.install_nodes(Path(base))
        with ComfyUIServer(check_host(options.host), Path(base), device="cpu") as server:
            if server.import_failures():
                print("\n".join(server.import_failures()))
                return 1
            object_info = server.object_info()
    if options.arrange is not None:
        arrange_anew(object_info, options.arrange)
    for path, text in contents(object_info):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
