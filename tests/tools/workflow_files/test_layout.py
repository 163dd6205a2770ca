"""Where nodes stand: in order, and nowhere one upon another."""

import itertools

from workflow_files.layout import TITLE, Box, columns_of_stage, place


def box(number: int, stage: str = "a", *sources: int, width: int = 100, height: int = 50) -> Box:
    return Box(number, stage, width, height, sources)


def test_a_node_stands_in_the_column_after_its_last_source():
    boxes = [box(1), box(2, "a", 1), box(3, "a", 1, 2), box(4), box(5, "a", 3)]
    columns = columns_of_stage(boxes, used={1, 2, 3, 4, 5})
    assert [[b.id for b in column] for column in columns] == [[1, 4], [2], [3], [5]]


def test_what_only_shows_something_stands_behind_it():
    boxes = [box(1), box(2, "a", 1), box(3), box(4, "a", 2)]
    columns = columns_of_stage(boxes, used={1, 2, 3})
    assert [[b.id for b in column] for column in columns] == [[1, 3], [2], [4]]


def test_sources_in_other_stages_do_not_push_a_node():
    assert len(columns_of_stage([box(7, "b", 1)], used={1})) == 1


def test_nothing_overlaps():
    boxes = [box(1), box(2, "a", 1, height=200), box(3), box(4, "b", 1, width=300), box(5, "b", 4), box(6, "b", 2)]
    positions, stages = place(boxes, left=50)
    for one, other in itertools.combinations(boxes, 2):
        (x1, y1), (x2, y2) = positions[one.id], positions[other.id]
        beside = x1 + one.width <= x2 or x2 + other.width <= x1
        below = y1 + one.height + TITLE <= y2 or y2 + other.height + TITLE <= y1
        assert beside or below, (one, other)
    (_, first), (_, second) = stages
    assert first[0] == 50 and first[0] + first[2] < second[0]
