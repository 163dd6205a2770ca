"""Where nodes stand: in columns by what they follow, in boxes side by side."""

from workflow_files.layout import TITLE, Box, columns_of_stage, frames_of_stages


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


def test_boxes_of_a_row_are_equally_high_and_the_first_is_as_high_as_both_rows():
    boxes = [box(1, "files"), box(2, "make", 1, height=200), box(3, "draw", 2), box(4, "show", 3, height=90)]
    places = {1: (20, 80), 2: (200, 80), 3: (200, 400), 4: (400, 420)}
    frames = dict(frames_of_stages(boxes, places, below="draw"))
    (_, top, _, high), (_, second, _, low) = frames["files"], frames["draw"]
    assert frames["show"][1::2] == [second, low]
    assert frames["make"][1] + frames["make"][3] < second, "the rows lie apart"
    assert frames["make"][1] == top and top + high == second + low
    for one in boxes:
        (x, y), (left, top, width, height) = places[one.id], frames[one.stage]
        assert left < x and x + one.width < left + width
        assert top < y - TITLE and y + one.height < top + height
