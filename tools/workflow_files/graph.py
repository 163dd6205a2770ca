"""A workflow while it is being described: nodes in stages, links, the files that a user needs."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelFile:
    """A file that a user has to have.

    Args:
        name: as the loader lists it. folder: below models/.
        url: of the file, for the page's own download button; "" where there is none.
        page: where a person finds it; shown in the note.
        gib: size, rounded; None where it depends. gated: one has to log in and accept a licence.
        only_int4: there is no FP4 file beside it.
    """

    name: str
    folder: str
    url: str = ""
    page: str = ""
    gib: float | None = None
    gated: bool = False
    only_int4: bool = False


@dataclass(frozen=True)
class Output:
    """One output of a node: what a link starts from."""

    node: "Node"
    index: int


@dataclass
class Node:
    """A node: class, what it is for ("" where that is plain), inputs as in API form but Output objects for links."""

    id: int
    class_type: str
    title: str
    stage: str
    inputs: dict[str, Any]
    files: tuple[ModelFile, ...] = ()
    size: tuple[int, int] | None = None

    def __getitem__(self, index: int) -> Output:
        return Output(self, index)


@dataclass
class Workflow:
    """One workflow.

    Args:
        name: of its files, without ending. title: of its note and card.
        summary: one sentence: what it is for.
        note: what else one should know first, Markdown.
        below: the stage that begins a second row of boxes.
        stages: titles of the boxes that the nodes stand in, left to right, in the order of first use.
    """

    name: str
    title: str
    summary: str
    note: str = ""
    below: str = ""
    nodes: list[Node] = field(default_factory=list)

    def add(self, stage: str, class_type: str, title: str, *files: ModelFile, **inputs: Any) -> Node:
        """Add a node; an input that is a Node stands for its first output."""
        links = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        node = Node(len(self.nodes) + 1, class_type, title, stage, links, files)
        self.nodes.append(node)
        return node

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(node.stage for node in self.nodes))

    @property
    def files(self) -> list[ModelFile]:
        return list(dict.fromkeys(file for node in self.nodes for file in node.files))

    def api_form(self, object_info: dict) -> dict[str, dict]:
        """What POST /prompt takes.

        Args:
            object_info: what the host says about its nodes; a node is called as there, with what it is for behind it.
        """

        def title(node: Node) -> str:
            name = object_info.get(node.class_type, {}).get("display_name") or node.class_type
            return f"{name}: {node.title}" if node.title else name

        return {
            str(node.id): {
                "class_type": node.class_type,
                "_meta": {"title": title(node)},
                "inputs": {
                    name: [str(value.node.id), value.index] if isinstance(value, Output) else value
                    for name, value in node.inputs.items()
                },
            }
            for node in self.nodes
        }
