"""The spellings of nunchaku files, and which one a file uses. Canonical names are those of kernels/format.py.

Layers and the tensors in them are spelled independently: files exist with older layer names and newer tensor names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..models import Architecture

# canonical tensor name -> suffix in the file
OLDER_SUFFIXES = {
    "qweight": "qweight",
    "wscales": "wscales",
    "wtscale": "wtscale",
    "wcscales": "wcscales",
    "wzeros": "wzeros",
    "bias": "bias",
    "smooth_factor": "smooth",
    "smooth_factor_orig": "smooth_orig",
    "proj_down": "lora_down",
    "proj_up": "lora_up",
}
NEWER_SUFFIXES = OLDER_SUFFIXES | {
    "smooth_factor": "smooth_factor",
    "smooth_factor_orig": "smooth_factor_orig",
    "proj_down": "proj_down",
    "proj_up": "proj_up",
}
# What this pack adds, in plain order, when a model comes from a format that holds more; other readers pass over it.
EXACT = "exact_"  # before the canonical name of a tensor that was rounded to the file's dtype
SIGNED_BIAS = "signed_bias"  # of a layer that had signed activations where nunchaku has unsigned ones


@dataclass(frozen=True)
class Spelling:
    """How one file names layers and tensors.

    Args:
        suffixes: canonical tensor name -> suffix.
        layers: prefix of a block kind -> {layer name in our tables: layer name in the file}; missing = the same.
    """

    suffixes: dict[str, str]
    layers: Mapping[str, Mapping[str, str]]

    def layer(self, block: str, index: int, name: str) -> str:
        """Full checkpoint name of a layer or plain tensor of a block."""
        return f"{block}.{index}.{self.layers.get(block, {}).get(name, name)}"


def writing_spelling(architecture: Architecture) -> Spelling:
    """FLUX goes out under the older names, which every nunchaku release reads; PixArt never had any."""
    return Spelling(OLDER_SUFFIXES if architecture.older_suffixes else NEWER_SUFFIXES, {})


def spelling_of(architecture: Architecture, names: Iterable[str]) -> Spelling:
    """The spelling that the names of a file use."""
    names = list(names)
    older_suffixes = any(name.endswith((".lora_down", ".smooth")) for name in names)
    newer_layers = any(
        name.startswith(f"{block}.") and f".{newer}." in name
        for block, table in architecture.newer_names.items()
        for older, newer in table.items()
        if not older.endswith(".weight")
        for name in names
    )
    return Spelling(
        OLDER_SUFFIXES if older_suffixes else NEWER_SUFFIXES, architecture.newer_names if newer_layers else {}
    )
