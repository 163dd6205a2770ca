"""The first ten minutes: quantize, see a picture, change a LoRA's strength, read the help, meet an error."""

import json
import urllib.parse

import pytest
from comfyui_pack import PACK_NAME
from node_frames import FRAMES, overlapping
from workflow_files import write
from workflow_files.ui_form import to_ui_form

from svdquant_pack import ROOT

DEMO = ROOT / "workflows" / "demo" / "ui"
NODES = sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def quantized(page):
    """The demo's model in 4 bits, made in the page."""
    page.show()
    page.drag_file(DEMO / "flux_quantize.json")
    entry = page.queue()
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    return entry


def test_a_file_just_written_stands_in_the_lists(page, quantized):
    page.drag_file(DEMO / "flux_quantize.json")
    page.queue()
    page.drag_file(DEMO / "flux_svdquant.json")
    page.page.wait_for_function(
        """file => app.rootGraph._nodes.find(n => n.type === 'SVDQuantModelLoader')
            .widgets.find(w => w.name === 'model_name').options.values.includes(file)""",
        arg="svdq-int4_r32-demo_flux.safetensors",
        timeout=10_000,
    )


def saved(page, entry) -> dict:
    node = page.find("SaveImage")
    return entry["outputs"][node["id"]]["images"][0]


def test_quantizing_shows_report_plot_and_picture(page, quantized):
    page.drag_file(DEMO / "flux_quantize.json")
    entry = page.queue()
    assert page.shows_picture(page.find("SaveImage")["id"], saved(page, entry)["filename"])
    plot = page.find("PreviewImage")
    assert page.shows_picture(plot["id"], entry["outputs"][plot["id"]]["images"][0]["filename"])
    page.picture("quantized")
    assert "relative output error" in page.page.locator(".svdquant-text").inner_text(), "shown on the node, no wire"
    frames = page.page.evaluate(FRAMES)
    assert not overlapping(frames), "the report makes the node larger than the layout has room for"


def test_a_picture_appears_and_follows_the_strength(drawn, quantized, renderer):
    page = drawn
    page.drag_file(DEMO / "flux_svdquant_lora.json")
    save, lora = page.find("SaveImage")["id"], page.find("SVDQuantLoraLoader")["id"]
    first = page.queue()
    assert page.shows_picture(save, saved(page, first)["filename"])
    shown = page.page.locator(".svdquant-text").all_inner_texts()
    assert any("rank 32" in text and "GiB of weights" in text for text in shown), "the loader's status, without a wire"
    assert any("layers matched" in text for text in shown)
    page.picture(f"lora-1-{renderer}")
    before = page.sent
    page.type_number(lora, "strength", "0.25")
    second = page.queue()
    assert page.sent[lora]["inputs"].pop("strength") == 0.25
    assert before[lora]["inputs"].pop("strength") == 1.0
    assert page.sent == before, "more than the strength changed"
    assert page.shows_picture(save, saved(page, second)["filename"])
    page.picture(f"lora-2-{renderer}")
    pictures = [page.server.view(saved(page, entry)) for entry in (first, second)]
    assert pictures[0] != pictures[1]


def test_help_opens(drawn, renderer):
    page = drawn
    page.drag_file(DEMO / "flux_svdquant_lora.json")
    text, own = page.open_help(page.find("SVDQuantModelLoader")["id"])
    page.picture(f"help-{renderer}")
    assert own and "svdq-int4" in text and "compute" in text


def test_the_page_speaks_chinese(page):
    page.show(**{"Comfy.Locale": "zh"})
    page.drag_file(DEMO / "flux_svdquant_lora.json")
    labels = page.page.evaluate(
        "() => app.rootGraph._nodes.find(n => n.type === 'SVDQuantModelLoader').widgets.map(w => w.label ?? w.name)"
    )
    text, own = page.open_help(page.find("SVDQuantModelLoader")["id"])
    page.picture("chinese")
    assert labels[:2] == ["模型文件", "计算方式"]
    assert own and "选哪个文件" in text


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("locale", ["en", "zh"])
def test_every_help_page_is_served_with_its_pictures(page, node, locale):
    path = f"/extensions/{PACK_NAME}/docs/{node}{'' if locale == 'en' else f'/{locale}'}.md"
    text = page.server.request(urllib.parse.quote(path)).decode()
    assert len(text) > 200
    for picture in text.split("](pictures/")[1:]:
        name = picture.partition(")")[0]
        assert page.server.request(f"/extensions/{PACK_NAME}/docs/pictures/{name}")


def test_an_error_is_readable(page, tmp_path):
    page.show()
    form = json.loads((DEMO / "flux_svdquant.json").read_text(encoding="utf-8"))
    loader = next(node for node in form["nodes"] if node["type"] == "SVDQuantModelLoader")
    loader["widgets_values"] = ["flux1-dev.safetensors", "auto"]  # an empty file
    (tmp_path / "wrong.json").write_text(json.dumps(form))
    page.drag_file(tmp_path / "wrong.json")
    entry = page.queue()
    assert entry["status"]["status_str"] == "error"
    overlay, panel = page.read_error()
    page.picture("error")
    assert "Load Model (SVDQuant)" in overlay
    assert "flux1-dev.safetensors: the file is empty" in panel


def test_compared_images_lie_under_a_slider(drawn, tmp_path):
    page = drawn
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SVDQuantCompareImages", "inputs": {"reference": ["1", 0], "image": ["2", 0]}},
    }
    (tmp_path / "compare.json").write_text(json.dumps(to_ui_form("compare", graph, page.server.object_info())))
    page.drag_file(tmp_path / "compare.json")
    page.queue()
    page.center("3")
    page.page.wait_for_function(
        "() => [...document.querySelectorAll('.svdquant-slider img')].filter(i => i.naturalWidth).length === 2"
    )
    assert "PSNR" in page.page.locator(".svdquant-text").inner_text()


def test_the_check_shows_its_report(page):
    page.show()
    page.drag_file(ROOT / "workflows" / "environment-check.json")
    page.queue()
    assert "What will run" in page.page.locator(".svdquant-text").inner_text(), "the node does not show its report"
    page.picture("environment-check")


def test_templates_show_their_thumbnails_and_open(page):
    page.show()
    page.answers.clear()
    page.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.page.get_by_role("dialog").get_by_text(PACK_NAME, exact=True).first.click()
    names = [workflow.name for workflow in write.workflows()]
    cards = page.page.locator("[data-testid^=template-workflow-]")
    cards.first.wait_for(timeout=10_000)
    shown = [card.get_attribute("data-testid").removeprefix("template-workflow-") for card in cards.all()]
    assert shown == names[: len(shown)], "in the order of the descriptions"
    for name in names:
        card = page.page.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed(timeout=15_000)  # the page fetches a thumbnail when its card comes into view
        card.locator("img").first.wait_for(timeout=10_000)
    page.page.wait_for_timeout(500)
    page.picture("templates")
    fetched = [page.answers.get(f"/api/workflow_templates/{PACK_NAME}/{name}.jpg") for name in names]
    assert fetched == [200] * len(names)
    page.page.evaluate("() => { for (const n of app.rootGraph._nodes) n.fromBefore = true }")
    name = "quantize-any-model"  # as the page fits it, it would show no words
    page.page.get_by_test_id(f"template-workflow-{name}").click()
    page.page.wait_for_function("() => app.rootGraph._nodes.length && !app.rootGraph._nodes.some(n => n.fromBefore)")
    assert all(node["known"] for node in page.nodes())
    page.page.wait_for_timeout(300)
    view = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))["extra"]["ds"]
    assert page.page.evaluate("() => app.canvas.ds.scale") == view["scale"]
    assert page.page.evaluate("() => [...app.canvas.ds.offset]") == pytest.approx(view["offset"])


def test_nothing_went_wrong_in_the_page(page):
    assert page.exceptions == []
    assert page.outside == [], "the page asked other machines"
