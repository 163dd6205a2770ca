"""What a user sees when a workflow opens: the note and every node, none cut off and none over another."""

import itertools

import pytest
from workflow_files import write

from svdquant_pack import ROOT

NAMES = [workflow.name for workflow in write.workflows()]
WINDOW = {"width": 1700, "height": 950}
SIDE_BAR, TOP_BAR = 62, 90  # pixels of the page's own bars, at the left and above
# of each node, in pixels of the window: as the page drew it
FRAMES = """() => { const c = app.canvas, {scale, offset} = c.ds, area = c.canvas.getBoundingClientRect();
    return app.rootGraph._nodes.map(n => { const e = document.querySelector(`[data-node-id="${n.id}"]`);
        if (e) { const b = e.getBoundingClientRect(); return [n.title, b.left, b.top, b.right, b.bottom] }
        const left = area.left + (n.pos[0] + offset[0]) * scale, top = area.top + (n.pos[1] - 30 + offset[1]) * scale;
        return [n.title, left, top, left + n.size[0] * scale, top + (n.size[1] + 30) * scale] }) }"""


@pytest.fixture
def window(drawn):
    usual = drawn.page.viewport_size
    drawn.page.set_viewport_size(WINDOW)
    yield drawn
    drawn.page.set_viewport_size(usual)


@pytest.mark.parametrize("name", NAMES)
def test_all_lies_in_sight_and_apart(window, renderer, name):
    """With nodes as large as the page makes them: drawn as elements, they are larger than on the canvas."""
    page = window
    page.drag_file(ROOT / "workflows" / f"{name}.json")
    page.page.wait_for_timeout(300)  # elements are measured after they are drawn
    page.picture(f"opening-{name}-{renderer}")
    frames = page.page.evaluate(FRAMES)
    for title, left, top, right, bottom in frames:
        assert left >= SIDE_BAR and top >= TOP_BAR, f"{title} is behind a bar of the page"
        assert right <= WINDOW["width"] and bottom <= WINDOW["height"], f"{title} is out of sight: {right}, {bottom}"
    for one, other in itertools.combinations(frames, 2):
        beside = one[3] <= other[1] or other[3] <= one[1]
        assert beside or one[4] <= other[2] or other[4] <= one[2], f"{one[0]} covers {other[0]}"
