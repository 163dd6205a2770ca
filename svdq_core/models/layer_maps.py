"""How one Linear, and one kind of block, of ComfyUI's model stands in the files of others.

Names called `host` are ComfyUI's, names called `source` those of nunchaku's files, and `modules` those of diffusers'
unquantized model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

Span = tuple[int, int]
Modules = tuple[str, ...]
MLP_RATIO = 8 / 3  # widths of most MLPs behind a SwiGLU


@dataclass(frozen=True)
class LinearMap:
    """One Linear of a block, and the source layers that it is made of, or the piece of one that it is.

    Args:
        host: module name within the block.
        sources: source layers, in the order in which they are stacked.
        stack: "rows" (they share the input) or "columns" (their outputs are summed).
        unsigned: indices of the sources that sit behind a GELU.
        modulation_chunks: 0, or the number of chunks (shift, scale, gate, ...) of a modulation layer, kept as AWQ
            W4A16.
        split: (out_features, in_features) -> sizes along the stack. Of several sources: of the Linear, for the sizes of
            the sources; of a piece: of the source, for the sizes of the pieces.
        shape: (out_features, in_features) in multiples of the model's width; None for any size.
        piece: which of the pieces of the rows of its one source this Linear is; None if it is the whole.
        swapped: the row halves of the source, and of diffusers' module, stand in the other order.
        bias: whether ComfyUI's Linear has one.
        group: Linears of a block that read one tensor have the same group, also where each is a source of its own; ""
            if there are no others.
        apart: source layers that hold equal shares of the rows where the Linear is in 16 bits; () if that is no matter.
        alike: its sources have one smoothing and one proj_down, so that they are read as one part.
    """

    host: str
    sources: tuple[str, ...]
    stack: str = "rows"
    unsigned: tuple[int, ...] = ()
    modulation_chunks: int = 0
    split: Callable[[int, int], tuple[int, ...]] | None = None
    shape: tuple[float | None, float | None] = (1, 1)
    piece: int | None = None
    swapped: bool = False
    bias: bool = True
    group: str = ""
    apart: Modules = ()
    alike: bool = False

    @property
    def relative_size(self) -> tuple[float, float]:
        """The shape in multiples of the width, for estimates: an open size is that of most MLPs."""
        rows, columns = (MLP_RATIO if size is None else size for size in self.shape)
        return rows, columns

    def rectangles(self, out_features: int, in_features: int) -> list[tuple[Span, Span]]:
        """(rows, columns) of each source within the whole weight."""
        if self.split is None or self.piece is not None:
            return [((0, out_features), (0, in_features))]
        edges = [0, *accumulate(self.split(out_features, in_features))]
        spans = list(pairwise(edges))
        if self.stack == "rows":
            return [(span, (0, in_features)) for span in spans]
        return [((0, out_features), span) for span in spans]

    def source_rows(self, out_features: int, in_features: int) -> list[Span]:
        """The rows of its one source of these sizes that this Linear consists of, in its own order.

        Raises:
            ValueError: a source of these sizes does not split so.
        """
        if self.piece is not None and self.split is not None:
            sizes = self.split(out_features, in_features)
            if sum(sizes) != out_features or min(sizes) <= 0:
                raise ValueError(f"{out_features} rows of {in_features} inputs do not split into {sizes}")
            return [list(pairwise(accumulate(sizes, initial=0)))[self.piece]]
        if self.swapped:
            if out_features % 2:
                raise ValueError(f"{out_features} rows have no halves")
            return [(out_features // 2, out_features), (0, out_features // 2)]
        return [(0, out_features)]


@dataclass(frozen=True)
class PlainMap:
    """An unquantized tensor of a block that differs in form.

    Args:
        sources: source tensors, stacked on rows.
        rows: rows that the source has where ComfyUI has one row of all of them (Krea 2: (6, H) against (6H,)); 0: the
            same form.
    """

    sources: tuple[str, ...]
    rows: int = 0


@dataclass(frozen=True)
class NativeLayer:
    """One layer of deepcompressor's own output.

    Args:
        modules: the diffusers modules whose rows it stacks.
        smooth: the module under which its smoothing factors are kept; "" if that is modules[0].
        branch: likewise for its low-rank branch.
        foldable: the smoothing may have been folded into the layer before, as `proj.fuse_when_possible` tells.
    """

    modules: Modules
    smooth: str = ""
    branch: str = ""
    foldable: bool = False


@dataclass(frozen=True)
class BlockMap:
    """One kind of transformer block.

    Args:
        host, source: prefixes before the block index.
        linears: the Linears that may be quantized.
        plain: host tensor -> source tensors, unquantized, stacked on rows, or a PlainMap.
        plain_shapes: host tensor -> shape, in the notation of Architecture.shapes; missing: not checked.
        config_key: where a diffusers config.json states how many there are; "" if nowhere.
        modules: host Linear -> the diffusers modules whose rows it stacks, alternatives, the first is diffusers' own;
            missing: one, called as the source.
        newer: older source name -> newer one, of Linears and plain tensors.
        native: source layer -> how deepcompressor's own output names it; empty: it has never written this family.
        optional: host tensors that some members of the family, or some writers, leave out.
        plain_source: prefix of the unquantized tensors, where it is not that of the layers.
    """

    host: str
    source: str
    linears: tuple[LinearMap, ...]
    plain: Mapping[str, tuple[str, ...] | PlainMap]
    plain_shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config_key: str = ""
    modules: Mapping[str, tuple[Modules, ...]] = field(default_factory=dict)
    newer: Mapping[str, str] = field(default_factory=dict)
    native: Mapping[str, NativeLayer] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    plain_source: str = ""

    @property
    def plain_prefix(self) -> str:
        """The prefix before the block index of source tensors that are not quantized."""
        return self.plain_source or self.source

    def plain_map(self, host: str) -> PlainMap:
        """The map of an unquantized tensor, by its name within the block."""
        found = self.plain[host]
        return found if isinstance(found, PlainMap) else PlainMap(found)

    def alternatives(self, linear: LinearMap) -> tuple[Modules, ...]:
        """The diffusers modules whose rows a Linear stacks; several ways where files differ."""
        return self.modules.get(linear.host, (linear.sources,))

    def siblings(self, linear: LinearMap) -> tuple[LinearMap, ...]:
        """All pieces of the source that a Linear is a piece of, in the order of their rows; itself if it is whole."""
        if linear.piece is None:
            return (linear,)
        found = [other for other in self.linears if other.piece is not None and other.sources == linear.sources]
        return tuple(sorted(found, key=lambda other: other.piece or 0))


def thirds(rows: int, columns: int) -> tuple[int, ...]:
    """q, k and v of equal size."""
    return (rows // 3,) * 3


def halves(rows: int, columns: int) -> tuple[int, ...]:
    """Two layers of equal size."""
    return (rows // 2,) * 2
