"""The model families, one file each; this is the only list of them.

A family that another one resembles comes before it: the first whose marks a file has is taken.
"""

from .architecture import Architecture, Place, Published
from .chroma import CHROMA
from .completeness import missing_parts
from .ernie import ERNIE
from .flux import FLUX
from .flux2 import FLUX2
from .krea2 import KREA2
from .layer_maps import BlockMap, LinearMap, NativeLayer, PlainMap
from .minimax_h3 import MINIMAX_H3
from .pixart import PIXART
from .qwen_image import QWEN_IMAGE
from .sdxl import SDXL
from .t5 import T5
from .zimage import ZIMAGE

FAMILIES = (CHROMA, FLUX2, FLUX, ZIMAGE, KREA2, QWEN_IMAGE, SDXL, ERNIE, PIXART, MINIMAX_H3)
ARCHITECTURES = {architecture.name: architecture for architecture in FAMILIES}
SUPPORTED = (
    "FLUX.1 (dev, schnell, Krea, Kontext, Fill, Canny, Depth), FLUX.2 (Klein, dev), Chroma, Z-Image, Krea 2, "
    "Qwen-Image (2512, Edit, 2509, 2511, Layered), MiniMax H3, SDXL, Ernie Image and PixArt-Sigma/Alpha"
)

__all__ = [
    "ARCHITECTURES",
    "CHROMA",
    "ERNIE",
    "FAMILIES",
    "FLUX",
    "FLUX2",
    "KREA2",
    "MINIMAX_H3",
    "PIXART",
    "QWEN_IMAGE",
    "SDXL",
    "SUPPORTED",
    "T5",
    "ZIMAGE",
    "Architecture",
    "BlockMap",
    "LinearMap",
    "NativeLayer",
    "Place",
    "PlainMap",
    "Published",
    "missing_parts",
]
