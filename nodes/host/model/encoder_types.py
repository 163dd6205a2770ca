"""ComfyUI's types of text encoders, and which files each takes beside a 4-bit one."""

from dataclasses import dataclass

import comfy.sd
import nodes as host_nodes

STOCK_LOADERS = ("CLIPLoader", "DualCLIPLoader")


@dataclass(frozen=True)
class EncoderType:
    """Args:
    first: what a 4-bit file of this type is.
    least, most: how many other files there may be. others: what they are.
    """

    first: str = "one text encoder"
    least: int = 0
    most: int = 0
    others: str = ""


_T5, _GEMMA3 = "T5-XXL", "Gemma 3 12B"
TYPES = {
    "flux": EncoderType("T5-XXL", 1, 1, "clip_l"),
    "flux2": EncoderType("Mistral 3 24B, Qwen3 4B or Qwen3 8B"),
    "sd3": EncoderType(_T5, 0, 2, "clip_l or clip_g, or both"),
    "hidream": EncoderType("T5-XXL or Llama 3 8B", 0, 3, "the other one, clip_l and clip_g"),
    "chroma": EncoderType(_T5),
    "pixart": EncoderType(_T5),
    "ltxv": EncoderType(f"T5-XXL or {_GEMMA3}", 0, 1, "the text projection of LTX-2"),
    "mochi": EncoderType(_T5),
    "cogvideox": EncoderType(_T5),
    "cosmos": EncoderType("T5-XXL 1.0"),
    "wan": EncoderType("umT5-XXL"),
    "lumina2": EncoderType("Gemma 2 2B, Gemma 3 4B or Qwen3 4B"),
    "qwen_image": EncoderType("Qwen2.5-VL 7B"),
    "longcat_image": EncoderType("Qwen2.5-VL 7B"),
    "hunyuan_image": EncoderType("Qwen2.5-VL 7B", 0, 1, "byt5"),
    "hunyuan_video": EncoderType("Llama 3 8B", 1, 1, "clip_l"),
    "hunyuan_video_15": EncoderType("Qwen2.5-VL 7B", 1, 1, "byt5"),
    "kandinsky5": EncoderType("Qwen2.5-VL 7B", 1, 1, "clip_l"),
    "kandinsky5_image": EncoderType("Qwen2.5-VL 7B", 1, 1, "clip_l"),
    "omnigen2": EncoderType("Qwen2.5-VL 3B"),
    "krea2": EncoderType("Qwen3-VL 4B"),
    "mage": EncoderType("Qwen3-VL 4B"),
    "boogu": EncoderType("Qwen3-VL 8B"),
    "joyimage": EncoderType("Qwen3-VL 8B"),
    "ideogram4": EncoderType("Qwen3-VL 8B or Qwen3 8B"),
    "minimax": EncoderType("Qwen3-VL 32B"),
    "ovis": EncoderType("Ovis2.5 2B"),
    "lens": EncoderType("gpt-oss 20B"),
    "pixeldit": EncoderType("Gemma 2 2B"),
    "newbie": EncoderType("Gemma 3 4B", 1, 1, "jina clip v2"),
    "ace": EncoderType("T5 base or Qwen3 0.6B", 0, 1, "the other Qwen3 of ACE-Step 1.5"),
    "stable_audio": EncoderType("T5 base or T5Gemma"),
    "sdxl": EncoderType("CLIP-G", 1, 1, "clip_l"),
    "stable_cascade": EncoderType("CLIP-G"),
    # encoders by which ComfyUI knows the model itself: Anima, ERNIE, Gemma 4, Qwen3.5
    "stable_diffusion": EncoderType(),
}


def type_names() -> list[str]:
    """All types of the stock loaders, those of a newer ComfyUI included; FLUX.1's first."""
    stock = [name for loader in STOCK_LOADERS for name in _options(loader)]
    return list(dict.fromkeys([*(n for n in TYPES if n in stock), *stock]))


def encoder_type(name: str) -> EncoderType:
    """What is known of a type; of one that is new, that it takes up to two other files."""
    return TYPES.get(name, EncoderType(most=2, others="what the model wants beside it"))


def clip_type(name: str) -> comfy.sd.CLIPType:
    """The host's own constant, as its loaders find it."""
    return getattr(comfy.sd.CLIPType, name.upper(), comfy.sd.CLIPType.STABLE_DIFFUSION)


def _options(loader: str) -> list[str]:
    return list(host_nodes.NODE_CLASS_MAPPINGS[loader].INPUT_TYPES()["required"]["type"][0])
