"""Where the page drew the nodes of a workflow."""

import itertools

# of each node, in pixels of the window: title, left, top, right, bottom
FRAMES = """() => { const c = app.canvas, {scale, offset} = c.ds, area = c.canvas.getBoundingClientRect();
    return app.rootGraph._nodes.map(n => { const e = document.querySelector(`[data-node-id="${n.id}"]`);
        if (e) { const b = e.getBoundingClientRect(); return [n.title, b.left, b.top, b.right, b.bottom] }
        const left = area.left + (n.pos[0] + offset[0]) * scale, top = area.top + (n.pos[1] - 30 + offset[1]) * scale;
        return [n.title, left, top, left + n.size[0] * scale, top + (n.size[1] + 30) * scale] }) }"""


def overlapping(frames: list[list]) -> list[tuple[str, str]]:
    """Titles of each two nodes of which one covers the other."""
    found = []
    for one, other in itertools.combinations(frames, 2):
        beside = one[3] <= other[1] or other[3] <= one[1]
        if not (beside or one[4] <= other[2] or other[4] <= one[2]):
            found.append((one[0], other[0]))
    return found
