"""Apply LoRAs in the page: rows are added, moved and removed, and no value is ever lost."""

import json

from svdquant_pack import ROOT

STACK = ROOT / "workflows" / "flux.1-dev-lora-stack.json"
TURBO, GHIBSKY, STRIPED = "flux.1-turbo-alpha.safetensors", "flux.1-ghibsky.safetensors", "striped_lora_r16.safetensors"


class Stack:
    """The node's lines, as a user works on them."""

    def __init__(self, page):
        self.page = page
        self.id = page.find("SVDQuantLoraStack")["id"]
        page.page.wait_for_timeout(300)
        page.page.keyboard.press("Escape")
        page.center(self.id)

    def click(self, label: str) -> None:
        self.page.page.get_by_label(label, exact=True).click()

    def choose(self, row: int, file: str) -> None:
        self.click(f"{row}: LoRA")
        self.page.page.locator(".litemenu-entry", has_text=file).click()

    def type_strength(self, row: int, text: str) -> None:
        field = self.page.page.get_by_label(f"{row}: strength", exact=True)
        field.fill(text)
        field.press("Enter")

    def sent(self) -> list[tuple]:
        """(on, file, strength) of each row that the page would post with a file."""
        inputs = self.page.api_form()[self.id]["inputs"]
        rows = [tuple(inputs[f"loras.{part}_{i}"] for part in ("on", "lora", "strength")) for i in range(1, 11)]
        return [row for row in rows if row[1] != "None"]

    def lines(self) -> list[tuple[str, str]]:
        """(file, strength) of each line that is shown."""
        rows = self.page.page.locator(".svdquant-loras .row")
        return [(row.locator(".name").inner_text(), row.locator(".strength").input_value()) for row in rows.all()]


def saved(page, folder):
    """The workflow as the page would save it, as a file."""
    path = folder / "saved.json"
    path.write_text(json.dumps(page.page.evaluate("() => app.rootGraph.serialize()")), encoding="utf-8")
    return path


def test_rows_keep_their_values(drawn, renderer, tmp_path):
    page = drawn
    page.drag_file(STACK)
    stack = Stack(page)
    stack.type_strength(1, "0.8")
    stack.click("2: on or off")
    expected = [(True, TURBO, 0.8), (False, GHIBSKY, 1)]
    assert stack.sent() == expected
    stack.click("Add LoRA")
    assert stack.sent() == expected, "a third row changed the others"
    assert stack.lines()[2] == ("None", "1"), "a new row is empty"
    stack.choose(3, STRIPED)
    stack.type_strength(3, "-0.35")
    expected.append((True, STRIPED, -0.35))
    assert stack.sent() == expected
    page.picture(f"lora-rows-{renderer}")

    page.drag_file(saved(page, tmp_path))
    stack = Stack(page)
    assert stack.sent() == expected, "lost by saving and opening"
    assert stack.lines() == [(TURBO, "0.8"), (GHIBSKY, "1"), (STRIPED, "-0.35")]
    stack.click("3: move up")
    assert stack.sent() == [expected[0], expected[2], expected[1]]
    stack.click("1: remove")
    assert stack.sent() == [expected[2], expected[1]] and len(stack.lines()) == 2
    stack.click("2: remove")
    stack.click("1: remove")
    assert stack.sent() == [] and stack.lines() == [("None", "1")], "one empty row stays"


def test_lines_are_as_wide_as_the_node_while_the_panel_at_the_right_is_open(page):
    """The panel draws the selected node's widgets, too, and gives them its own width."""
    page.show()
    page.drag_file(STACK)
    stack = Stack(page)
    panel = "open => app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', open)"
    page.page.evaluate(panel, True)
    try:
        page.page.evaluate("id => app.canvas.selectNode(app.rootGraph.getNodeById(Number(id)))", stack.id)
        page.page.get_by_test_id("properties-panel").wait_for(timeout=10_000)
        page.page.wait_for_timeout(500)
        page.picture("lora-rows-beside-the-panel")
        width = page.page.locator(".svdquant-loras .row").first.bounding_box()["width"]
        assert width > page.find("SVDQuantLoraStack")["size"][0] - 40
    finally:
        page.page.evaluate(panel, False)


def test_a_workflow_of_an_older_version_keeps_its_rows(page, tmp_path):
    """There, the number of rows brought the widgets along, and nothing stood for the rows not shown."""
    page.show()
    form = json.loads(STACK.read_text(encoding="utf-8"))
    node = next(node for node in form["nodes"] if node["type"] == "SVDQuantLoraStack")
    node["widgets_values"] = ["3", True, TURBO, 0.5, False, "gone.safetensors", 0.25, True, STRIPED, -1]
    node["inputs"] = [entry for entry in node["inputs"] if entry["name"] in ("model", "loras")]
    (tmp_path / "old.json").write_text(json.dumps(form), encoding="utf-8")
    page.drag_file(tmp_path / "old.json")
    stack = Stack(page)
    assert stack.sent() == [(True, TURBO, 0.5), (False, "gone.safetensors", 0.25), (True, STRIPED, -1)]
    assert len(stack.lines()) == 3
