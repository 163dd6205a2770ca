"""Where nodes stand: stages side by side, in each stage columns by how far a node is from the stage's first nodes.

What only shows something (nothing follows it) stands below what it shows, so that a workflow does not grow too wide.
"""

from dataclasses import dataclass

NODE_WIDTH, LOADER_WIDTH, WIDE_NODE_WIDTH, NOTE_WIDTH = 240, 340, 360, 360
COLUMN_GAP, ROW_GAP, STAGE_GAP, MARGIN, HEADING = 44, 40, 36, 20, 50
TITLE, SLOT, WIDGET, TEXT, PICTURE = 30, 22, 26, 130, 330


@dataclass(frozen=True)
class Box:
    """What the layout needs to know of a node."""

    id: int
    stage: str
    width: int
    height: int
    sources: tuple[int, ...]


def columns_of_stage(boxes: list[Box], used: set[int]) -> list[list[Box]]:
    """The nodes of one stage, each in the column after the last of its sources within the stage.

    Args:
        used: ids of all nodes that another one follows.
    """
    here = {box.id: box for box in boxes}
    depth: dict[int, int] = {}

    def find(box: Box) -> int:
        if box.id not in depth:
            depth[box.id] = max((1 + find(here[s]) for s in box.sources if s in here), default=0)
        return depth[box.id]

    columns: list[list[Box]] = [[] for _ in range(1 + max(map(find, boxes)))]
    for box in sorted(boxes, key=lambda box: box.id not in used):  # what shows something goes below
        columns[depth[box.id]].append(box)
    return columns


def frames_of_stages(boxes: list[Box], places: dict[int, tuple[int, int]]) -> list[tuple[str, list[int]]]:
    """(stage, [x, y, width, height]) of the frame around the nodes of each stage, in order of first use."""
    frames = []
    for stage in dict.fromkeys(box.stage for box in boxes):
        here = [(*places[box.id], box) for box in boxes if box.stage == stage]
        left, top = min(x for x, _, _ in here) - MARGIN, min(y for _, y, _ in here) - TITLE - HEADING
        right, bottom = max(x + box.width for x, _, box in here), max(y + box.height for _, y, box in here)
        frames.append((stage, [left, top, right + MARGIN - left, bottom + MARGIN - top]))
    return frames


def place(boxes: list[Box], left: int = 0) -> tuple[dict[int, tuple[int, int]], list[tuple[str, list[int]]]]:
    """Positions of the nodes and the rectangles [x, y, width, height] of the stages, from `left` to the right.

    Returns:
        {node id: (x, y)}, and (stage, rectangle) in order.
    """
    positions: dict[int, tuple[int, int]] = {}
    stages: list[tuple[str, list[int]]] = []
    used = {source for box in boxes for source in box.sources}
    for stage in dict.fromkeys(box.stage for box in boxes):
        x, bottom = left + MARGIN, 0
        for column in columns_of_stage([box for box in boxes if box.stage == stage], used):
            y = HEADING
            for box in column:
                positions[box.id] = (x, y + TITLE)
                y += TITLE + box.height + ROW_GAP
            bottom = max(bottom, y)
            x += max(box.width for box in column) + COLUMN_GAP
        stages.append((stage, [left, 0, x - COLUMN_GAP + MARGIN - left, bottom]))
        left = x - COLUMN_GAP + MARGIN + STAGE_GAP
    return positions, stages
