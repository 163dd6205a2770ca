"""What a user sees when a workflow opens: the note and every node, none cut off and none over another."""

import pytest
from node_frames import FRAMES, overlapping
from workflow_files import write

from svdquant_pack import ROOT

NAMES = [workflow.name for workflow in write.workflows()]
WINDOW = {"width": 1700, "height": 950}
SIDE_BAR, TOP_BAR = 62, 90  # pixels of the page's own bars, at the left and above


@pytest.fixture
def window(drawn):
    usual = drawn.page.viewport_size
    drawn.page.set_viewport_size(WINDOW)
    drawn.page.evaluate("() => app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', false)")
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
    assert not overlapping(frames)
