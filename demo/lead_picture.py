"""Draws docs/pictures/lead.png: one picture in 16 bits, in 4 bits, and rounded plainly to 4 bits, and what differs.

python demo/lead_picture.py http://127.0.0.1:8188    a running ComfyUI that demo/install.py and flux_quantize prepared
"""

import io
import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "pictures" / "lead.png"
CAPTION = "a small green heart, a large red star and a small blue ring in a row on a dotted yellow background"
VALUES = {"caption.caption": CAPTION, "sampler.seed": 1, "sampler.steps": 12}
COLUMNS = (
    ("16 bits", "flux_bf16"),
    ("4-bit file of this pack (w4a8)", "flux_svdquant"),
    ("rounded plainly to 4 bits", "flux_naive"),
)
TOP, BOTTOM = 56, 184  # of the 256 pixels: the shapes stand here
WIDTH, GAP, EDGE, LINE = 384, 14, 16, 30
TIMES = 4  # differences are shown so many times as strong


def draw(url: str, name: str) -> np.ndarray:
    """Run one of the demo's workflows; the picture, (H, W, 3) uint8."""
    graph = json.loads((ROOT / "workflows" / "demo" / f"{name}.json").read_text(encoding="utf-8"))
    for target, value in VALUES.items():
        node, _, key = target.partition(".")
        graph[node]["inputs"][key] = value
    body = json.dumps({"prompt": graph}).encode()
    request = urllib.request.Request(f"{url}/prompt", data=body, headers={"Content-Type": "application/json"})
    number = json.loads(urllib.request.urlopen(request, timeout=60).read())["prompt_id"]
    while not (entry := json.loads(urllib.request.urlopen(f"{url}/history/{number}", timeout=60).read()).get(number)):
        time.sleep(0.5)
    images = [image for output in entry["outputs"].values() for image in output.get("images", [])]
    view = f"{url}/view?{urllib.parse.urlencode(images[0])}"
    return np.array(Image.open(io.BytesIO(urllib.request.urlopen(view, timeout=60).read())).convert("RGB"))


def compose(pictures: list[np.ndarray]) -> Image.Image:
    """Pictures in a row, the differences from the first below."""
    height = (BOTTOM - TOP) * WIDTH // 256
    size = (2 * EDGE + len(pictures) * (WIDTH + GAP) - GAP, 2 * EDGE + 2 * (height + LINE) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    reference = pictures[0].astype(np.float64)
    for index, ((title, _), picture) in enumerate(zip(COLUMNS, pictures, strict=True)):
        left = EDGE + index * (WIDTH + GAP)
        pen.text((left, EDGE), title, fill="black", font=font)
        _paste(sheet, picture, left, EDGE + LINE, height)
        if not index:
            continue
        off = picture - reference
        psnr = 10 * np.log10(255**2 / np.mean(off**2))
        below = EDGE + LINE + height + GAP
        pen.text((left, below), f"difference x {TIMES}, PSNR {psnr:.1f} dB", fill="black", font=font)
        _paste(sheet, np.clip(np.abs(off) * TIMES, 0, 255).astype(np.uint8), left, below + LINE, height)
    pen.text((EDGE, EDGE + LINE + height + GAP), "what differs from the 16 bits:", fill="black", font=font)
    return sheet


def _paste(sheet: Image.Image, picture: np.ndarray, left: int, top: int, height: int) -> None:
    part = Image.fromarray(picture[TOP:BOTTOM]).resize((WIDTH, height), Image.Resampling.LANCZOS)
    sheet.paste(part, (left, top))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    compose([draw(sys.argv[1].rstrip("/"), name) for _, name in COLUMNS]).quantize(256).save(OUT, optimize=True)
    print(OUT)
