"""Wires stay in sight: what runs behind a node is found, and the nodes are moved until nothing does."""

import itertools

from workflow_files.arrange import Wire, arrange, hidden_wires
from workflow_files.layout import TITLE, Box


def boxes(*given):
    return {number: Box(number, stage, 200, 100, sources) for number, stage, sources in given}


THREE = boxes((1, "files", ()), (2, "prompt", ()), (3, "draw", (1,)))


def test_a_wire_behind_a_node_is_found():
    in_the_way = {1: (0, 100), 2: (300, 100), 3: (600, 100)}
    wire = Wire(1, 0, 3, 0)
    assert hidden_wires(THREE, [wire], in_the_way) == [(wire, 2)]
    assert not hidden_wires(THREE, [wire], {**in_the_way, 2: (300, 400)})


def test_a_wire_behind_its_own_node_is_found():
    backwards = {1: (600, 100), 2: (0, 900), 3: (0, 100)}
    assert {number for _, number in hidden_wires(THREE, [Wire(1, 0, 3, 0)], backwards)} & {1, 3}


def test_nodes_are_moved_out_of_the_way():
    wires = [Wire(1, 0, 3, 0)]
    places = arrange(list(THREE.values()), wires)
    assert not hidden_wires(THREE, wires, places)


def test_nodes_of_a_column_lie_apart():
    column = boxes(*((number, "files", ()) for number in (1, 2, 3)), (4, "draw", (1, 2, 3)))
    places = arrange(list(column.values()), [Wire(number, 0, 4, number) for number in (1, 2, 3)])
    heights = sorted(places[number][1] for number in (1, 2, 3))
    assert all(lower - upper > 100 + TITLE for upper, lower in itertools.pairwise(heights))


def test_a_second_row_begins_below_and_to_the_right_of_the_first_box():
    places = arrange(list(THREE.values()), [Wire(1, 0, 3, 0)], below="draw")
    assert places[3][0] == places[2][0] > places[1][0] + THREE[1].width
    assert places[3][1] > places[2][1] + THREE[2].height
