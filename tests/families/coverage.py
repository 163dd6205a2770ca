"""docs/coverage.md: how much of every model of ComfyUI Quantize Model makes 4-bit, what it leaves and why, from traces.

COMFYUI_PATH=... python tests/families/coverage.py        writes the page
"""

import sys
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(ROOT / room) for room in ("tests", "tools")]
    from comfyui_library import find_comfyui, import_comfyui

    FOUND = find_comfyui(None)
    assert FOUND is not None, "set COMFYUI_PATH to the folder of a ComfyUI"
    assert not import_comfyui(FOUND, "cpu")

from families.registry import FAMILIES
from families.traces import published_trace

from svdquant_pack import ROOT as PACK
from svdquant_pack.nodes.host.model.dense_weights import architecture_of
from svdquant_pack.svdq_core.checkpoint.formats import quantized_format
from svdquant_pack.svdq_core.errors import ArchitectureError
from svdquant_pack.svdq_core.models import Architecture
from svdquant_pack.svdq_core.quantize.layout_plan import plan_layout, spare_idle_layers
from svdquant_pack.svdq_core.quantize.model_plan import ModelPlan
from svdquant_pack.svdq_core.quantize.plan_rules import plan_model
from svdquant_pack.svdq_core.quantize.spec import QuantSpec

PAGE = PACK / "docs" / "coverage.md"
TITLES = {
    "flux1": "FLUX.1",
    "flux2": "FLUX.2",
    "chroma": "Chroma",
    "zimage": "Z-Image",
    "lumina2": "Lumina 2",
    "krea2": "Krea 2",
    "qwen_image": "Qwen-Image",
    "mage_flow": "Mage Flow",
    "hidream": "HiDream I1",
    "hunyuan_image": "Hunyuan Image 2.1",
    "pixart": "PixArt-Sigma",
    "sdxl": "SDXL",
    "sd15": "Stable Diffusion 1.5",
    "sd3": "Stable Diffusion 3.5",
    "auraflow": "AuraFlow",
    "anima": "Anima",
    "ideogram4": "Ideogram 4",
    "ernie": "Ernie Image",
    "omnigen2": "OmniGen 2",
    "boogu": "Boogu",
    "lens": "Lens",
    "joyimage": "JoyImage",
    "minimax_h3": "MiniMax H3",
    "minimax_h3_curve": "MiniMax H3, curve form",
    "ltxv": "LTX-Video",
    "ltx23": "LTX-2.3",
    "wan_t2v": "Wan 2.1 and 2.2, 14B, text to video",
    "wan_i2v": "Wan 2.1 and 2.2, 14B, image to video",
    "wan22_5b": "Wan 2.2, 5B",
    "wan_vace": "Wan VACE",
    "hunyuan_video": "HunyuanVideo",
    "hunyuan_video15": "HunyuanVideo 1.5",
    "cosmos_predict2": "Cosmos Predict 2",
    "kandinsky5": "Kandinsky 5",
    "cogvideox": "CogVideoX",
}
FORMATS = {"nunchaku": "nunchaku", "svdquant": "this pack's"}
INTRODUCTION = """# What Quantize Model makes of every model

Of each model of ComfyUI 0.30 at its published size, found by running ComfyUI's own class of it on noise: how much of it
goes into 4 bits (W4A4 or W4A8, and W4A16 for modulation), how large the INT4 file of rank 32 becomes, and what stays in
16 bits and why, in percent of all parameters. Models that are not in this list are traced the same way when they are
quantized. Made by `python tests/families/coverage.py`; a test compares it with what the node would do.

| model | billions of parameters | 4 bits % | W4A16 % | file GiB (16 bits) | layout | in 16 bits, and why |
|---|---:|---:|---:|---:|---|---|
"""


def plan_of(name: str) -> tuple[Architecture | None, ModelPlan]:
    """What the node would do with the published model, and the family whose layout decides it."""
    traced = published_trace(name)
    network = FAMILIES[name].build(FAMILIES[name].published)
    try:
        architecture = architecture_of(SimpleNamespace(diffusion_model=network))
    except ArchitectureError:
        return None, plan_model(traced)
    shapes = {linear.name: (linear.out_features, linear.in_features) for linear in traced}
    return architecture, spare_idle_layers(plan_layout(architecture, shapes, traced.parameters), traced)


def row(name: str) -> str:
    """A line of the table."""
    architecture, plan = plan_of(name)
    reasons: dict[str, int] = {}
    for layer in plan:
        if layer.why:
            reasons[_short(layer.why)] = reasons.get(_short(layer.why), 0) + layer.weights
    outside = plan.parameters - sum(layer.weights for layer in plan)
    told = [f"{why} {weights / plan.parameters:.1%}" for why, weights in sorted(reasons.items(), key=lambda x: -x[1])]
    told.append(f"outside of the blocks, norms, biases {outside / plan.parameters:.1%}")
    form = "this pack's" if architecture is None else FORMATS[quantized_format(architecture, "int4")]
    size = f"{plan.nbytes(QuantSpec()) / 2**30:.1f} ({2 * plan.parameters / 2**30:.1f})" if plan.names else "-"
    return (
        f"| {TITLES[name]} | {plan.parameters / 1e9:.2f} | {100 * plan.share(False):.1f} | "
        f"{100 * plan.share(True):.1f} | {size} | {form if plan.names else '-'} | {'; '.join(told)} |"
    )


def _short(why: str) -> str:
    """A reason without the numbers of one layer's sizes."""
    words = why.split(". ")[0]
    for end in ("are no multiple of 64", "are no multiple of 16"):
        if words.endswith(end):
            return f"width {words.split()[0]} {end.removeprefix('are ')}"
    return words


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(f"{row(name)}\n" for name in FAMILIES)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
