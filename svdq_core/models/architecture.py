"""How a model family is described: which checkpoint layers feed which host module, and what stays in 16 bits.

Names on the left are the host's (ComfyUI's own model classes), names on the right the checkpoint's. A template of
a block is repeated for every index of that block.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

MAX_BLOCKS = 1000  # of one kind; a higher index is no block of any model here


@dataclass(frozen=True)
class LinearMap:
    """One host Linear of a block, and the checkpoint layers that it is made of.

    Args:
        host: module name within the host's block.
        sources: checkpoint layers, in the order in which they are stacked.
        stack: "rows" (they share the input) or "columns" (their outputs are summed).
        unsigned: indices of the sources that sit behind a GELU.
        modulation_chunks: 0, or the number of chunks (shift, scale, gate, ...) of a modulation layer, kept as AWQ
            W4A16.
        split: (out_features, in_features) -> sizes of the sources along the stack; needed only with several sources.
        shape: (out_features, in_features) in multiples of the model's width.
    """

    host: str
    sources: tuple[str, ...]
    stack: str = "rows"
    unsigned: tuple[int, ...] = ()
    modulation_chunks: int = 0
    split: Callable[[int, int], tuple[int, ...]] | None = None
    shape: tuple[int, int] = (1, 1)

    def rectangles(self, out_features: int, in_features: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """(rows, columns) of each source within the whole weight."""
        if self.split is None:
            return [((0, out_features), (0, in_features))]
        edges = [0, *accumulate(self.split(out_features, in_features))]
        spans = list(pairwise(edges))
        if self.stack == "rows":
            return [(span, (0, in_features)) for span in spans]
        return [((0, out_features), span) for span in spans]


@dataclass(frozen=True)
class BlockMap:
    """One kind of transformer block.

    Args:
        host, source: prefixes before the block index.
        linears: the quantized Linears.
        plain: host tensor -> checkpoint tensors, unquantized, stacked on rows.
        plain_shapes: host tensor -> shape, in the notation of Architecture.shapes.
        config_key: where a diffusers config.json states how many there are.
    """

    host: str
    source: str
    linears: tuple[LinearMap, ...]
    plain: dict[str, tuple[str, ...]]
    plain_shapes: dict[str, tuple[str, ...]]
    config_key: str


@dataclass(frozen=True)
class Place:
    """A module or tensor of a block: the block, its index, and the name within it."""

    block: BlockMap
    index: int
    rest: str


@dataclass(frozen=True)
class Architecture:
    """A model family.

    Args:
        name: stable id; title: for messages.
        blocks: its kinds of blocks.
        modules: host module -> checkpoint module, each with weight and bias, outside the blocks.
        tensors: host tensor -> checkpoint tensor, outside the blocks.
        optional: beginnings of host names that some members of the family lack, each altogether.
        swapped_halves: host modules whose checkpoint rows are (scale, shift) where the host wants (shift, scale).
        newer_names: older checkpoint layer name -> newer one, within a block of each kind (by BlockMap.source).
        shapes: host tensor outside the blocks -> its shape; each size is a number, "H", "2H", ... in terms of the
            model's width, or "*" for any.
        older_tensors: end of a host tensor's name -> how older hosts and original files end it.
    """

    name: str
    title: str
    blocks: tuple[BlockMap, ...]
    modules: dict[str, str]
    tensors: dict[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    swapped_halves: frozenset[str] = frozenset()
    newer_names: dict[str, dict[str, str]] = field(default_factory=dict)
    shapes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    older_tensors: dict[str, str] = field(default_factory=dict)

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
            if prefix in prefixes and _is_index(index):
                counts[prefixes[prefix]] = max(counts[prefixes[prefix]], int(index) + 1)
        return counts

    def plain_tensors(self) -> dict[str, str]:
        """Host tensor -> checkpoint tensor for everything outside the blocks."""
        pairs = {f"{h}.{e}": f"{s}.{e}" for h, s in self.modules.items() for e in ("weight", "bias")}
        return pairs | self.tensors

    def linears(self, counts: dict[str, int]) -> Iterator[tuple[str, LinearMap]]:
        """(host name, map) of every Linear of every block, in the order of the model."""
        for block in self.blocks:
            for index in range(counts[block.host]):
                for linear in block.linears:
                    yield f"{block.host}.{index}.{linear.host}", linear

    def find_block(self, host: str) -> "Place | None":
        """Where in the blocks a host module or tensor lies, or None where it lies outside them."""
        prefix, _, rest = host.partition(".")
        index, _, name = rest.partition(".")
        block = next((b for b in self.blocks if b.host == prefix), None)
        return None if block is None or not _is_index(index) else Place(block, int(index), name)

    def find_linear(self, host: str) -> LinearMap | None:
        """The map of a host Linear of a block, or None where there is no such Linear."""
        place = self.find_block(host)
        return None if place is None else next((m for m in place.block.linears if m.host == place.rest), None)

    def shape_of(self, host_tensor: str, width: int) -> tuple[int | None, ...] | None:
        """The shape that a host tensor must have in a model of this width; None stands for any size, or any shape.

        Args:
            host_tensor: full name, with .weight or .bias.
            width: features of the residual stream.
        """
        module, _, end = host_tensor.rpartition(".")
        linear = self.find_linear(module)
        if linear is not None:
            return tuple(n * width for n in linear.shape)[: 2 if end == "weight" else 1]
        place = self.find_block(host_tensor)
        symbols = self.shapes.get(host_tensor) if place is None else place.block.plain_shapes.get(place.rest)
        if symbols is None and end == "bias":
            symbols = self.shapes.get(f"{module}.weight", ())[:1] or None
        return None if symbols is None else tuple(_size(symbol, width) for symbol in symbols)

    def expected_tensors(self, present: Callable[[str, str], bool]) -> dict[str, str]:
        """Host tensor -> checkpoint tensor of plain_tensors() that a file must have.

        Args:
            present: whether the file has a tensor, by its host name and by its checkpoint name. Of what is optional,
                all
                is expected where anything of it is present.
        """
        pairs = self.plain_tensors()
        there = {group for h, s in pairs.items() if present(h, s) for group in self._groups(h)}
        return {h: s for h, s in pairs.items() if not self.is_optional(h) or there & self._groups(h)}

    def is_optional(self, host_tensor: str) -> bool:
        return bool(self._groups(host_tensor))

    def _groups(self, host_tensor: str) -> set[str]:
        """The optional groups that a host tensor belongs to."""
        return {name for name in self.optional if host_tensor == name or host_tensor.startswith(name + ".")}


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_BLOCKS)) and int(text) < MAX_BLOCKS


def _size(symbol: str, width: int) -> int | None:
    if symbol == "*":
        return None
    return int(symbol[:-1] or 1) * width if symbol.endswith("H") else int(symbol)
