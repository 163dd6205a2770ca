"""Draws the thumbnails of the template browser and the pack's icon: workflows/*.jpg, web/icon.png.

usage: python tools/workflow_files/thumbnails.py [--host COMFYUI] [WORKFLOW ...]

The pictures in them come from the demo's FLUX, quantized to 4 bits by the pack itself, in a ComfyUI that this starts.
"""

import argparse
import io
import json
import os
import sys
import tempfile
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

from workflow_files import write

SIZE, BAR = 400, 92  # pixels of a thumbnail, and of the bar with its words
QUALITY = 82
INK, PAPER, ACCENT = "#f4f6fa", "#16202e", "#3fb6a8"
WHITE = "a large red star on a plain white background"

# workflow -> (first line, second line, captions, how they are put together)
CARDS = {
    "quantize-any-model": ("Quantize", "any model", ["a large purple diamond on a plain white background"], "one"),
    "flux.1-dev": ("FLUX.1 dev", "4-bit, 20 steps", ["a large blue heart on a striped yellow background"], "one"),
    "flux.1-schnell": ("FLUX.1 schnell", "4-bit, 4 steps", ["a large orange star on a plain blue background"], "one"),
    "flux.1-kontext-dev": (
        "FLUX.1 Kontext",
        "edit by instruction",
        ["a large red circle on a plain white background", "a large green circle on a plain white background"],
        "halves",
    ),
    "flux.1-fill-dev": (
        "FLUX.1 Fill",
        "draw into a mask",
        ["a large purple heart on a plain yellow background"],
        "mask",
    ),
    "flux.1-canny-dev": ("FLUX.1 Canny", "along edges", ["a large yellow star on a plain purple background"], "edges"),
    "flux.1-depth-dev": (
        "FLUX.1 Depth",
        "by a depth map",
        ["a large green diamond on a plain blue background"],
        "depth",
    ),
    "flux.1-redux-dev": (
        "FLUX.1 Redux",
        "variations of a picture",
        [f"a large {c} ring on a dotted white background" for c in ("red", "blue", "green", "purple")],
        "four",
    ),
    "flux.1-dev-controlnet": (
        "ControlNet",
        "FLUX.1 dev, 4-bit",
        ["a large red cross on a plain white background"],
        "edges",
    ),
    "flux.1-dev-lora-stack": (
        "LoRA stack",
        "FLUX.1 dev, 8 steps",
        [
            "a large yellow circle on a plain blue background",
            "striped: a large yellow circle on a plain blue background",
        ],
        "halves",
    ),
    "z-image-turbo": ("Z-Image-Turbo", "4-bit, 8 steps", ["a large green star on a plain white background"], "one"),
    "krea-2-turbo": ("Krea 2 Turbo", "4-bit, 8 steps", ["a large purple cross on a striped white background"], "one"),
    "qwen-image": (
        "Qwen-Image",
        "4-bit, Lightning, 4 steps",
        ["a large yellow heart on a plain blue background"],
        "one",
    ),
    "qwen-image-edit-2511": (
        "Qwen-Image-Edit",
        "edit by instruction",
        ["a large blue ring on a plain yellow background", "a large red ring on a plain yellow background"],
        "halves",
    ),
    "flux.2-klein": ("FLUX.2 Klein", "4-bit, 4 steps", ["a large orange diamond on a dotted white background"], "one"),
    "chroma": ("Chroma", "4-bit, with a negative prompt", ["a large red star on a checkered white background"], "one"),
    "sdxl": ("SDXL", "4-bit", ["a large blue square on a striped yellow background"], "one"),
    "minimax-h3": (
        "MiniMax H3",
        "video with sound, 4-bit",
        [f"a large {c} circle on a plain blue background" for c in ("red", "orange", "yellow", "white")],
        "four",
    ),
    "environment-check": ("Environment check", "before you download", [], "ticks"),
    "quantize-your-own-flux": (
        "Quantize your FLUX.1",
        "16 bits to 4, no calibration",
        ["a large blue star on a plain yellow background"],
        "blocks",
    ),
    "quantize-your-own-flux-calibrated": (
        "Quantize, calibrated",
        "with your own prompts",
        [
            "a large blue star on a plain yellow background",
            "a large red heart on a striped white background",
            "a large green ring on a dotted white background",
            "a large purple diamond on a plain white background",
        ],
        "four blocks",
    ),
    "compare-bf16": (
        "16 bits or 4?",
        "same seed, side by side",
        [
            "bf16: a large purple circle on a striped white background",
            "a large purple circle on a striped white background",
        ],
        "halves",
    ),
    "convert": ("Convert", "to other file formats", ["a large orange square on a plain white background"], "blocks"),
    "pixart-sigma": ("PixArt-Sigma", "4-bit", ["a large green heart on a checkered white background"], "one"),
    "pixart-sigma-quantize": (
        "Quantize PixArt-Sigma",
        "16 bits to 4",
        ["a large red diamond on a checkered yellow background"],
        "blocks",
    ),
}


def font(size: int, bold: bool = True) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu if the system has it, else the font that Pillow brings."""
    try:
        return ImageFont.truetype(f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def blocks(picture: Image.Image) -> Image.Image:
    """The right half in coarse blocks: a sign for fewer bits."""
    coarse = picture.resize((20, 20), Image.Resampling.BOX).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    picture.paste(coarse.crop((SIZE // 2, 0, SIZE, SIZE)), (SIZE // 2, 0))
    return picture


def edges(picture: Image.Image) -> Image.Image:
    """The left half as white edges on black, as the Canny node shows them."""
    red, green, blue = (channel.filter(ImageFilter.FIND_EDGES) for channel in picture.split())
    found = ImageChops.lighter(ImageChops.lighter(red, green), blue).point([0] * 61 + [255] * 195)
    picture.paste(found.crop((4, 4, SIZE // 2, SIZE - 4)).convert("RGB"), (0, 4))
    return picture


def depth(picture: Image.Image) -> Image.Image:
    """The left half as a map in which the shape is near."""
    grey = ImageOps.autocontrast(ImageOps.grayscale(picture.filter(ImageFilter.GaussianBlur(6))))
    picture.paste(ImageOps.invert(grey).crop((0, 0, SIZE // 2, SIZE)).convert("RGB"), (0, 0))
    return picture


def mask(picture: Image.Image) -> Image.Image:
    """A painted mask over the picture."""
    veil = Image.new("L", picture.size, 0)
    ImageDraw.Draw(veil).ellipse((120, 60, 380, 300), fill=150)
    picture.paste(Image.new("RGB", picture.size, "black"), (0, 0), veil)
    return picture


def ticks() -> Image.Image:
    """A list with ticks."""
    picture = Image.new("RGB", (SIZE, SIZE), PAPER)
    draw = ImageDraw.Draw(picture)
    for row, word in enumerate(("GPU", "torch", "Triton", "kernels")):
        y = 52 + row * 62
        draw.line([(70, y), (84, y + 14), (108, y - 14)], fill=ACCENT, width=8, joint="curve")
        draw.text((140, y), word, fill=INK, font=font(34), anchor="lm")
    return picture


def put_together(pictures: list[Image.Image], way: str) -> Image.Image:
    """The upper part of a thumbnail."""
    if way == "ticks":
        return ticks()
    scaled = [picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS) for picture in pictures]
    if way == "halves":
        scaled[0].paste(scaled[1].crop((SIZE // 2, 0, SIZE, SIZE)), (SIZE // 2, 0))
    elif way.startswith("four"):
        small = [picture.resize((SIZE // 2, SIZE // 2), Image.Resampling.LANCZOS) for picture in pictures]
        for index, picture in enumerate(small):
            scaled[0].paste(picture, (index % 2 * SIZE // 2, index // 2 * SIZE // 2))
        return blocks(scaled[0]) if way == "four blocks" else scaled[0]
    elif way != "one":
        return {"blocks": blocks, "edges": edges, "depth": depth, "mask": mask}[way](scaled[0])
    return scaled[0]


def card(pictures: list[Image.Image], title: str, subtitle: str, way: str) -> Image.Image:
    """One thumbnail."""
    picture = put_together(pictures, way)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, SIZE - BAR, SIZE, SIZE), fill=PAPER)
    draw.rectangle((0, SIZE - BAR, 10, SIZE), fill=ACCENT)
    size = 30
    while draw.textlength(title, font=font(size)) > SIZE - 50:
        size -= 1
    draw.text((28, SIZE - BAR + 32), title, fill=INK, font=font(size), anchor="lm")
    draw.text((28, SIZE - BAR + 66), subtitle, fill="#9fb3c8", font=font(20, bold=False), anchor="lm")
    return picture


def icon(picture: Image.Image) -> Image.Image:
    """The pack's icon: a picture that turns into four-bit blocks."""
    return blocks(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


class Painter:
    """Draws captions with the demo's model, in BF16 and in 4 bits, with and without the LoRA of stripes."""

    def __init__(self, server):
        self.server = server
        self._drawn: dict[str, Image.Image] = {}
        self._run("flux_quantize", {})

    def _run(self, name: str, values: dict) -> Image.Image:
        graph = json.loads((write.DEMO / f"{name}.json").read_text(encoding="utf-8"))
        for place, value in values.items():
            node, _, key = place.partition(".")
            graph[node]["inputs"][key] = value
        entry = self.server.prompt(graph)
        image = entry["outputs"]["save_image"]["images"][0]
        return Image.open(io.BytesIO(self.server.view(image))).convert("RGB")

    def draw(self, caption: str) -> Image.Image:
        if caption not in self._drawn:
            kind, _, words = caption.rpartition(": ")
            graph = {"": "flux_svdquant", "striped": "flux_svdquant_lora", "bf16": "flux_bf16"}[kind]
            self._drawn[caption] = self._run(graph, {"caption.caption": words, "sampler.steps": 16})
        return self._drawn[caption].copy()


def main(argv: list[str]) -> int:
    """Draw all of them."""
    from comfyui_server import ComfyUIServer
    from comfyui_source import HOST_FOLDER, check_host

    sys.path.insert(0, str(write.ROOT / "demo"))
    import install

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=Path(os.environ.get("COMFYUI_PATH", HOST_FOLDER)))
    parser.add_argument("workflow", nargs="*", choices=[[], *CARDS], help="draw these only, and no icon")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as base:
        install.install_models(Path(base))
        install.install_nodes(Path(base))
        with ComfyUIServer(check_host(options.host), Path(base)) as server:
            painter = Painter(server)
            for name in options.workflow or CARDS:
                title, subtitle, captions, way = CARDS[name]
                path = write.FOLDER / f"{name}.jpg"
                pictures = [painter.draw(caption) for caption in captions]
                card(pictures, title, subtitle, way).save(path, quality=QUALITY, optimize=True)
                print(path.relative_to(write.ROOT))
            if options.workflow:
                return 0
            icon(painter.draw(WHITE)).save(write.ROOT / "web" / "icon.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
