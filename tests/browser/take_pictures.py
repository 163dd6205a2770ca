"""Takes the pictures of the node help from the running page: web/docs/pictures.

usage: python tests/browser/take_pictures.py   (with what the browser tests need; see conftest.py)
"""

import io
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from chromium import find_chromium  # noqa: E402  (the folders above hold these)
from comfyui_page import ComfyUIPage  # noqa: E402
from comfyui_server import ComfyUIServer  # noqa: E402
from comfyui_source import find_host  # noqa: E402
from furnished_base import furnish  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

HELP = ROOT / "web" / "docs" / "pictures"
DEMO = ROOT / "workflows" / "demo" / "ui"
MARGIN = 14


def shrink(path: Path, width: int) -> None:
    """Few colours and few pixels: these pictures lie in the repository."""
    picture = Image.open(path).convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def take(page: ComfyUIPage, path: Path, titles: list[str], width: int = 760) -> None:
    """A picture of the nodes with these titles and of what lies between them."""
    chosen = [node["id"] for node in page.nodes() if node["title"] in titles]
    assert len(chosen) == len(titles), f"{titles}: found {chosen}"
    page.page.evaluate(
        """ids => { const c = app.canvas, nodes = ids.map(id => app.rootGraph.getNodeById(Number(id)));
        const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 30;
        c.ds.scale = 1; c.ds.offset[0] = 90 - left; c.ds.offset[1] = 110 - top; c.setDirty(true, true) }""",
        chosen,
    )
    page.page.wait_for_timeout(600)
    boxes = [page.page.locator(f"[data-node-id='{number}']").bounding_box() for number in chosen]
    left, top = min(b["x"] for b in boxes) - MARGIN, min(b["y"] for b in boxes) - MARGIN
    right = max(b["x"] + b["width"] for b in boxes) + MARGIN
    bottom = max(b["y"] + b["height"] for b in boxes) + MARGIN
    clip = {"x": left, "y": top, "width": right - left, "height": min(bottom, 940) - top}
    page.page.mouse.move(1590, 940)
    page.page.screenshot(path=path, clip=clip)
    shrink(path, width)


def main() -> int:
    """Take all of them."""
    HELP.mkdir(parents=True, exist_ok=True)
    front_end = Path(find_spec("comfyui_frontend_package").origin).parent / "static"
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        furnish(base)
        with (
            ComfyUIServer(find_host(), base, device="cpu", front_end=front_end) as server,
            sync_playwright() as playwright,
        ):
            page = ComfyUIPage(playwright, find_chromium(), server, base)
            page.load(**{"Comfy.VueNodes.Enabled": True, "Comfy.NodeBadge.NodeSourceBadgeMode": "None"})
            page.page.set_viewport_size({"width": 1900, "height": 1000})
            page.drag_file(DEMO / "flux_quantize.json")
            entry = page.queue()
            plot = entry["outputs"][page.find("PreviewImage")["id"]]["images"][0]
            Image.open(io.BytesIO(server.view(plot))).save(HELP / "error_plot.png")
            shrink(HELP / "error_plot.png", 760)
            page.page.wait_for_timeout(2000)  # the page fetches its lists anew, with the file just written
            page.drag_file(DEMO / "flux_svdquant_lora.json")
            page.queue()
            take(page, HELP / "loader.png", ["Load Model (SVDQuant)"], 460)
            take(page, HELP / "lora.png", ["Apply LoRA (SVDQuant)"], 460)
            page.drag_file(ROOT / "workflows" / "flux.1-dev-lora-stack.json")
            take(page, HELP / "stack.png", ["Apply LoRAs (SVDQuant)"], 460)
            page.close()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main())
