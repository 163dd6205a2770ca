"""Where nodes stand: stages side by side, in each stage columns by how far a node is from the stage's first nodes.

What only shows something (nothing follows it) stands below what it shows, so that a workflow does not grow too wide.
"""

from dataclasses import dataclass

NODE_WIDTH, LOADER_WIDTH, WIDE_NODE_WIDTH, NOTE_WIDTH = 225, 340, 340, 1000
COLUMN_GAP, ROW_GAP, STAGE_GAP, MARGIN, HEADING = 36, 24, 30, 20, 50
TITLE, SLOT, WIDGET, TEXT = 30, 22, 28, 130  # of nodes as page elements, which are the larger ones


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


def frames_of_stages(
    boxes: list[Box], places: dict[int, tuple[int, int]], below: str = ""
) -> list[tuple[str, list[int]]]:
    """(stage, [x, y, width, height]) of the frame around the nodes of each stage, in order of first use.

    Frames that stand side by side are equally high. With a second row the first stage's frame is as high as both.

    Args:
        below: the stage that begins the second row; "" for one row.
    """
    stages = list(dict.fromkeys(box.stage for box in boxes))
    second = stages.index(below) if below else len(stages)
    rows = [stages[1:second] if below else stages, stages[second:]]
    edges: dict[str, tuple[int, int]] = {}
    for row in filter(None, rows):
        here = [(places[box.id][1], box.height) for box in boxes if box.stage in row]
        top, bottom = min(y for y, _ in here) - TITLE - HEADING, max(y + height for y, height in here) + MARGIN
        edges |= dict.fromkeys(row, (top, bottom))
    if below:
        lowest = max(places[box.id][1] + box.height for box in boxes if box.stage == stages[0]) + MARGIN
        edges[stages[0]] = (edges[stages[1]][0], max(edges[below][1], lowest))
    frames = []
    for stage in stages:
        here = [(places[box.id][0], box.width) for box in boxes if box.stage == stage]
        left, right = min(x for x, _ in here) - MARGIN, max(x + width for x, width in here) + MARGIN
        top, bottom = edges[stage]
        frames.append((stage, [left, top, right - left, bottom - top]))
    return frames
