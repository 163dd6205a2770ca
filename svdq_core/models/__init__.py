"""The model families, one file each; this is the only list of them.

A family that another one resembles comes before it: the first whose marks a file has is taken.
"""

from .architecture import Architecture, Place, Published
from .completeness import missing_parts
from .flux import FLUX
from .layer_maps import BlockMap, LinearMap, NativeLayer, PlainMap
from .pixart import PIXART

FAMILIES = (FLUX, PIXART)
ARCHITECTURES = {architecture.name: architecture for architecture in FAMILIES}
SUPPORTED = "FLUX.1 (dev, schnell, Krea, Kontext, Fill, Canny, Depth) and PixArt-Sigma/Alpha"

__all__ = [
    "ARCHITECTURES",
    "FAMILIES",
    "FLUX",
    "PIXART",
    "SUPPORTED",
    "Architecture",
    "BlockMap",
    "LinearMap",
    "NativeLayer",
    "Place",
    "PlainMap",
    "Published",
    "missing_parts",
]
