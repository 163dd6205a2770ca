"""The model families that map completely, and those that are recognised by name only."""

from .architecture import Architecture, BlockMap, LinearMap
from .flux import FLUX
from .pixart import PIXART

ARCHITECTURES = {architecture.name: architecture for architecture in (FLUX, PIXART)}
SUPPORTED = "FLUX.1 (dev, schnell, Krea, Kontext, Fill, Canny, Depth) and PixArt-Sigma/Alpha"

__all__ = ["ARCHITECTURES", "FLUX", "PIXART", "SUPPORTED", "Architecture", "BlockMap", "LinearMap"]
