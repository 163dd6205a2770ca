"""The two spellings of nunchaku files, and which one a file uses. Canonical names are those of kernels/format.py."""

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


@dataclass(frozen=True)
class Spelling:
    """How one file names layers and tensors.

    Args:
        suffixes: canonical tensor name -> suffix.
        layers: prefix of a block kind -> {layer name in our tables: layer name in the file}; missing = the same.
    """

    suffixes: dict[str, str]
    layers: dict[str, dict[str, str]]

    def layer(self, block: str, index: int, name: str) -> str:
        """Full checkpoint name of a layer or plain tensor of a block."""
        return f"{block}.{index}.{self.layers.get(block, {}).get(name, name)}"


def older_spelling() -> Spelling:
    return Spelling(OLDER_SUFFIXES, {})


def newer_spelling(architecture: Architecture) -> Spelling:
    return Spelling(NEWER_SUFFIXES, architecture.newer_names)


def spelling_of(architecture: Architecture, names: list[str]) -> Spelling:
    """The spelling that the names of a file use."""
    older = any(name.endswith((".lora_down", ".smooth")) for name in names)
    return older_spelling() if older else newer_spelling(architecture)
