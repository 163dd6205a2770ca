"""How a model family is described: which checkpoint layers feed which host module, and what stays in 16 bits.

Names on the left are the host's (ComfyUI's own model classes), names on the right those of the checkpoint. A template of a
block is repeated for every index of that block.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LinearMap:
    """One host Linear of a block, and the checkpoint layers that it is made of.

    Args:
        host: module name within the host's block.
        sources: checkpoint layers, in the order in which they are stacked.
        stack: "rows" (they share the input) or "columns" (their outputs are summed).
        unsigned: indices of the sources that sit behind a GELU.
        modulation_chunks: 0, or the number of chunks (shift, scale, gate, ...) of a modulation layer, kept as AWQ W4A16.
        split: (out_features, in_features) -> sizes of the sources along the stack; needed only with several sources.
    """

    host: str
    sources: tuple[str, ...]
    stack: str = "rows"
    unsigned: tuple[int, ...] = ()
    modulation_chunks: int = 0
    split: Callable[[int, int], tuple[int, ...]] | None = None


@dataclass(frozen=True)
class BlockMap:
    """One kind of transformer block.

    Args:
        host, source: prefixes before the block index.
        linears: the quantized Linears.
        plain: host tensor -> checkpoint tensors, unquantized, stacked on rows.
    """

    host: str
    source: str
    linears: tuple[LinearMap, ...]
    plain: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Architecture:
    """A model family.

    Args:
        name: stable id; title: for messages.
        blocks: its kinds of blocks.
        modules: host module -> checkpoint module, each with weight and bias, outside the blocks.
        tensors: host tensor -> checkpoint tensor, outside the blocks.
        optional: host names of modules and tensors that some members of the family lack.
        swapped_halves: host modules whose checkpoint rows are (scale, shift) where the host wants (shift, scale).
        newer_names: older checkpoint layer name -> newer one, within a block of each kind (by BlockMap.source).
    """

    name: str
    title: str
    blocks: tuple[BlockMap, ...]
    modules: dict[str, str]
    tensors: dict[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    swapped_halves: frozenset[str] = frozenset()
    newer_names: dict[str, dict[str, str]] = field(default_factory=dict)

    def count_blocks(self, names: Iterable[str], side: str) -> dict[str, int]:
        """How many blocks of each kind (keyed by BlockMap.host) a list of names holds.

        Args:
            side: "host" or "source", whose names they are.
        """
        counts = {block.host: 0 for block in self.blocks}
        prefixes = {getattr(block, side): block.host for block in self.blocks}
        for name in names:
            prefix, _, rest = name.partition(".")
            index = rest.partition(".")[0]
            if prefix in prefixes and index.isdigit():
                counts[prefixes[prefix]] = max(counts[prefixes[prefix]], int(index) + 1)
        return counts

    def plain_tensors(self) -> dict[str, str]:
        """Host tensor -> checkpoint tensor for everything outside the blocks."""
        pairs = {f"{h}.{e}": f"{s}.{e}" for h, s in self.modules.items() for e in ("weight", "bias")}
        return pairs | self.tensors

    def is_optional(self, host_tensor: str) -> bool:
        return any(host_tensor == name or host_tensor.startswith(name + ".") for name in self.optional)
