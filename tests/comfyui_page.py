"""ComfyUI's page in a real browser, driven as a user drives it: drag a file, press the button, read the node.

Selectors and the page's own objects (window.app, LiteGraph) are those of comfyui-frontend-package 1.47 and 1.58.
"""

import json
import time
from pathlib import Path
from typing import Any

SETTINGS = {
    "Comfy.TutorialCompleted": True,  # otherwise the template dialog covers a first visit
    "Comfy.InstalledVersion": "1.47.12",
    "Comfy.Locale": "en",
    "Comfy.Workflow.Persist": False,  # no drafts of the last test
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.EnableTooltips": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.AppBuilder.VueNodeSwitchDismissed": True,
    "Comfy.RightSidePanel.IsOpen": False,
    "Comfy.RightSidePanel.ShowErrorsTab": True,
    "Comfy.VueNodes.Enabled": False,  # nodes drawn on the canvas, or as elements of the page
}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
]
# the page announces itself before its first, empty workflow is in place: what is opened until then can be overwritten
READY = """() => { const a = window.app; return Boolean(a && a.vueAppReady && a.canvas
    && a.extensionManager.spinner === false && a.extensionManager.workflow.activeWorkflow
    && a.api.socket && a.api.socket.readyState === 1 && !document.querySelector('#splash-loader')) }"""
AFTER_IDLE = "() => new Promise(done => requestIdleCallback(() => setTimeout(done, 300)))"
NEXT_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
NODES = """() => app.rootGraph._nodes.map(n => ({id: String(n.id), type: n.type, title: n.title,
    known: Boolean(LiteGraph.registered_node_types[n.type]), size: [n.size[0], n.size[1]], pos: [n.pos[0], n.pos[1]],
    widgets: (n.widgets || []).map(w => ({name: w.name, value: w.value, type: w.type,
        options: Array.isArray(w.options?.values) ? w.options.values : null, min: w.options?.min, max: w.options?.max}))
}))"""
FIT = """() => { const c = app.canvas, nodes = app.rootGraph._nodes,
    left = Math.min(...nodes.map(n => n.pos[0])), right = Math.max(...nodes.map(n => n.pos[0] + n.size[0])),
    top = Math.min(...nodes.map(n => n.pos[1])) - 60, bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]));
    c.ds.scale = Math.min((c.canvas.clientWidth - 120) / (right - left), c.canvas.clientHeight / (bottom - top + 160));
    c.ds.offset[0] = 80 / c.ds.scale - left; c.ds.offset[1] = 90 / c.ds.scale - top; c.setDirty(true, true) }"""
# a file that is dropped on a node's text field is text for it, so the old nodes are moved out of sight
MAKE_ROOM = """() => { for (const n of app.rootGraph._nodes) n.fromBefore = true;
    app.canvas.ds.offset[0] = -100000; app.canvas.setDirty(true, true) }"""
# a node's help: a page of its pack, or what the page makes of the schema; 1.47 and 1.58 name them differently
HELP_PAGE = ".markdown-content, .comfy-markdown-content:not(.space-y-6)"
HELP_OF_SCHEMA = ".fallback-content, .comfy-markdown-content.space-y-6"
DROP_POINT = (800, 700)
IS_EMPTY_AT = "([x, y]) => !document.elementFromPoint(x, y)?.closest('textarea, input, [data-node-id], .dom-widget')"
CENTER = """id => { const n = app.rootGraph.getNodeById(id), c = app.canvas; c.ds.scale = 1;
    c.ds.offset[0] = c.canvas.clientWidth / 2 - n.pos[0] - n.size[0] / 2;
    c.ds.offset[1] = c.canvas.clientHeight / 2 - n.pos[1] - n.size[1] / 2; c.setDirty(true, true) }"""
POINT = """([id, name]) => { const n = app.rootGraph.getNodeById(id), c = app.canvas,
    frame = c.canvas.getBoundingClientRect(); let y = n.pos[1] - 15;
    if (name) { const w = n.widgets.find(w => w.name === name); y = n.pos[1] + (w.last_y ?? w.y) + 10 }
    return [frame.left + (n.pos[0] + n.size[0] / 2 + c.ds.offset[0]) * c.ds.scale,
            frame.top + (y + c.ds.offset[1]) * c.ds.scale] }"""
SHOWS_PICTURE = """([id, file]) => { const picture = app.rootGraph.getNodeById(id)?.imgs?.[0];
    return Boolean(picture?.complete && picture.naturalWidth && picture.src.includes(encodeURIComponent(file))) }"""
WATCH_RUNS = """() => { window.ended = {};
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(kind, e => { window.ended[e.detail.prompt_id] = kind }) }"""


class ComfyUIPage:
    """One browser with one page open.

    Args:
        playwright: from sync_playwright(). chromium: the browser's executable.
        server: a running ComfyUIServer with the real front end.
        pictures: folder for screenshots.
    """

    def __init__(self, playwright, chromium: str, server, pictures: Path):
        self.server, self.pictures = server, pictures
        self.exceptions: list[str] = []
        self.outside: list[str] = []  # requests to other machines; they are stopped
        self.answers: dict[str, int] = {}
        self.sent: dict = {}
        self.settings: dict[str, Any] | None = None
        self._browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        self._context = self._browser.new_context(viewport={"width": 1600, "height": 950}, reduced_motion="reduce")
        self._context.route(self._is_outside, self._stop)
        self.page = self._context.new_page()
        self._devtools = self._context.new_cdp_session(self.page)
        self.page.on("pageerror", lambda error: self.exceptions.append(str(error)))
        self.page.on(
            "response", lambda r: self.answers.update({r.url.removeprefix(server.url).split("?")[0]: r.status})
        )

    def _is_outside(self, url: str) -> bool:
        return not url.startswith((self.server.url, "data:", "blob:", "ws://127.0.0.1"))

    def _stop(self, route) -> None:
        self.outside.append(route.request.url)
        route.abort()

    def close(self) -> None:
        self._browser.close()

    def load(self, **settings: Any) -> None:
        """Open the page anew. Settings live on the server; they are set before the page asks for them."""
        self.settings = settings
        self.server.request("/api/settings", json.dumps(SETTINGS | settings).encode())
        self.page.goto(self.server.url, wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=120_000)
        self.page.get_by_test_id("queue-button").wait_for(timeout=30_000)
        self.page.evaluate(AFTER_IDLE)
        self.page.evaluate(WATCH_RUNS)

    def show(self, **settings: Any) -> None:
        """Load the page with these settings unless it is open with them: loading takes longer than most checks."""
        if self.settings != settings:
            self.load(**settings)
        self.page.keyboard.press("Escape")  # a menu of the last check

    def picture(self, name: str) -> Path:
        """Take a screenshot."""
        self.page.mouse.move(800, 930)  # away from nodes and tabs, which would open pop-ups
        path = self.pictures / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def drag_file(self, path: Path) -> list[dict]:
        """Drag a workflow file onto the canvas, as from a file manager; return the nodes."""
        self.page.evaluate(MAKE_ROOM)
        self.page.wait_for_function(IS_EMPTY_AT, arg=list(DROP_POINT), timeout=10_000)
        dragged = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for step in ("dragEnter", "dragOver", "drop"):
            self._devtools.send(
                "Input.dispatchDragEvent", {"type": step, "x": DROP_POINT[0], "y": DROP_POINT[1], "data": dragged}
            )
        wanted = len(json.loads(path.read_text(encoding="utf-8"))["nodes"])
        self.page.wait_for_function(
            "n => app.rootGraph._nodes.length === n && !app.rootGraph._nodes.some(x => x.fromBefore)",
            arg=wanted,
            timeout=30_000,
        )
        self.page.evaluate(NEXT_FRAMES)
        return self.nodes()

    def nodes(self) -> list[dict]:
        return self.page.evaluate(NODES)

    def find(self, class_type: str) -> dict:
        """The first node of a class."""
        return next(node for node in self.nodes() if node["type"] == class_type)

    def fit(self) -> None:
        """Show the whole workflow."""
        self.page.evaluate(FIT)
        self.page.evaluate(NEXT_FRAMES)

    def complaint(self) -> str:
        """Text of the overlay for missing nodes and models, after the page's scan for them; "" if there is none."""
        time.sleep(0.6)  # the scan has no end that can be seen; 0.2 s is what it takes
        overlay = self.page.get_by_test_id("error-overlay")
        return overlay.inner_text() if overlay.count() and overlay.is_visible() else ""

    def api_form(self) -> dict:
        """What the page would post now."""
        return self.page.evaluate("() => app.graphToPrompt().then(result => result.output)")

    def queue(self, timeout: float = 300) -> dict:
        """Press the button and wait for the end; return the history entry.

        Raises:
            AssertionError: the host refused the workflow.
        """
        with self.page.expect_response(lambda r: r.url.endswith("/api/prompt") and r.request.method == "POST") as sent:
            self.page.get_by_test_id("queue-button").click()
        answer = sent.value
        assert answer.status == 200, answer.text()
        self.sent = answer.request.post_data_json["prompt"]
        prompt_id = answer.json()["prompt_id"]
        self.page.wait_for_function("id => window.ended[id]", arg=prompt_id, timeout=timeout * 1000)
        for _ in range(200):  # the page can hear of the end before the history has it
            entry = json.loads(self.server.request(f"/history/{prompt_id}")).get(prompt_id)
            if entry:
                return entry
            time.sleep(0.05)
        raise AssertionError(f"no history entry for {prompt_id}")

    def center(self, node_id: str) -> None:
        self.page.evaluate(CENTER, int(node_id))
        self.page.evaluate(NEXT_FRAMES)
        self.page.wait_for_timeout(200)

    def shows_picture(self, node_id: str, file: str) -> bool:
        """Whether the node shows this picture; waits for it. The page loads a picture when it first draws the node."""
        self.center(node_id)
        self.page.wait_for_function(SHOWS_PICTURE, arg=[int(node_id), file], timeout=20_000)
        return True

    def type_number(self, node_id: str, widget: str, text: str) -> None:
        """Click a number and type another one."""
        self.center(node_id)
        if self.page.locator(f"[data-node-id='{node_id}']").count():  # nodes as page elements
            field = self.page.locator(f"[data-node-id='{node_id}'] [aria-label='{widget}'] input").first
            field.click(force=True)  # an area for dragging lies over it
        else:
            self.page.mouse.click(*self.page.evaluate(POINT, [int(node_id), widget]))
            field = self.page.locator(".graphdialog input")
            field.wait_for(timeout=5000)
        field.fill(text)
        field.press("Enter")
        self.page.mouse.move(800, 930)

    def open_help(self, node_id: str) -> tuple[str, bool]:
        """Open a node's help page; (its text, whether it is a page of the pack and not made from the schema)."""
        self.center(node_id)
        if self.page.locator(f"[data-node-id='{node_id}']").count():
            self.page.get_by_test_id(f"node-header-{node_id}").click(button="right")
            self.page.get_by_text("Node Info", exact=True).first.click()
        else:
            self.page.mouse.click(*self.page.evaluate(POINT, [int(node_id), None]))
            self.page.get_by_test_id("info-button").click()
        content = self.page.locator(".node-help-content")
        content.locator(f"{HELP_PAGE}, {HELP_OF_SCHEMA}").first.wait_for(timeout=10_000)
        return content.first.inner_text(), not content.locator(HELP_OF_SCHEMA).count()

    def read_error(self) -> tuple[str, str]:
        """(the overlay's text, the text of the panel that its button opens)."""
        self.page.get_by_test_id("error-overlay").wait_for(timeout=10_000)
        overlay = self.page.get_by_test_id("error-overlay").inner_text()
        self.page.get_by_test_id("error-overlay-see-errors").click()
        panel = self.page.get_by_test_id("properties-panel")
        panel.wait_for(timeout=10_000)
        self.page.wait_for_timeout(300)
        return overlay, panel.inner_text()
