"""The model families, one file each: whatever lies in this folder, and nothing has to be listed anywhere.

The first family whose marks a file has is taken, in the order of Architecture.asked.
"""

from importlib import import_module
from pkgutil import iter_modules

from .architecture import Architecture, Place, Published
from .chroma import CHROMA
from .completeness import missing_parts
from .ernie import ERNIE
from .flux import FLUX
from .flux2 import FLUX2
from .krea2 import KREA2
from .layer_maps import BlockMap, LinearMap, NativeLayer, PlainMap
from .lora_marks import other_family_of_lora
from .minimax_h3 import MINIMAX_H3
from .pixart import PIXART
from .qwen_image import QWEN_IMAGE
from .sdxl import SDXL
from .t5 import T5
from .zimage import ZIMAGE

# what else lies here
NO_FAMILIES = frozenset({"architecture", "completeness", "layer_maps", "lora_marks", "others", "t5"})


def _family(file: str) -> Architecture:
    """The family of a file: its public Architecture that is called as the file and is no other's spelling."""
    public = [x for n, x in vars(import_module(f".{file}", __package__)).items() if not n.startswith("_")]
    found = [value for value in public if isinstance(value, Architecture) and value.name == file]
    spellings = [spelling for value in found for spelling in (*value.variants, value.row_major)]
    families = [value for value in found if not any(value is spelling for spelling in spellings)]
    if len(families) != 1:
        raise ImportError(f"{__package__}.{file} describes {len(families)} families called {file!r}, expected one.")
    return families[0]


_FOUND = [_family(module.name) for module in iter_modules(__path__) if module.name not in NO_FAMILIES]
FAMILIES = tuple(sorted(_FOUND, key=lambda family: (family.asked, family.name)))
ARCHITECTURES = {architecture.name: architecture for architecture in FAMILIES}
SUPPORTED = ", ".join(sorted(family.covers or family.title for family in FAMILIES))

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
    "other_family_of_lora",
]
