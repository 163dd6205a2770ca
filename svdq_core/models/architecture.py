"""A model family: everything that readers, writers, LoRAs and the quantizer must know of it, in one description.

Names called `host` are ComfyUI's own model classes', names called `source` those of nunchaku's files, which follow
diffusers. A template of a block is repeated for every index of that block.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .layer_maps import BlockMap, LinearMap

MAX_BLOCKS = 1000  # of one kind; a higher index is no block of any model here
WIDTH = "H"  # in the shapes of a description: features of the residual stream


@dataclass(frozen=True)
class Place:
    """A module or tensor of a block: the block, its index, and the name within it."""

    block: BlockMap
    index: int
    rest: str


@dataclass(frozen=True)
class Published:
    """A model that files exist of.

    Args:
        name: as file names spell it, "flux.1-dev".
        width: features of the residual stream. counts: blocks of each kind, by BlockMap.host.
        outside: parameters in no Linear of a block; they stay in 16 bits.
        precisions: of the files, "int4" and "fp4". ranks: of their low-rank branches.
        shapes: Linear within a block -> (out_features, in_features), where LinearMap.shape leaves a size open.
        widths: kind of block, by BlockMap.host -> its width, where that is another one.
        layers_only: as weights are called in memory, precisions whose file holds the quantized Linears and no more;
            where it is not empty, what files of other precisions leave out is not known.
    """

    name: str
    width: int
    counts: dict[str, int]
    outside: int
    precisions: tuple[str, ...] = ("int4", "fp4")
    ranks: tuple[int, ...] = (32,)
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    layers_only: tuple[str, ...] = ()

    def linear_size(self, block: BlockMap, linear: LinearMap) -> tuple[int, int]:
        """(out_features, in_features) of a Linear."""
        width = self.widths.get(block.host, self.width)
        rows, columns = (0 if size is None else int(size * width) for size in linear.shape)
        return self.shapes.get(linear.host, (rows, columns))


@dataclass(frozen=True)
class LoraNames:
    """What LoRAs of a family need beyond ComfyUI's own key maps.

    Args:
        diffusers: ComfyUI knows diffusers' names of this family; else they are translated by BlockMap.modules.
        base_rank: of the models for which nunchaku's converter merged LoRAs; 0 if it never did for this family.
        parts: host Linear -> names of its sources that ComfyUI's key map knows; {host} is the Linear's full name,
            {index} the number of its block.
        marks: pieces of names that LoRAs of the family have and no other's; numbers stand for any, dots for underlines.
        called: what such a LoRA is for, where other models have the same names; "" for the family's title.
    """

    diffusers: bool = True
    base_rank: int = 0
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    called: str = ""


@dataclass(frozen=True)
class Architecture:
    """A model family.

    Args:
        name: stable id, and the name of its file here; title: for messages.
        covers: the title and what belongs to the family, where the title does not say it.
        asked: the order in which families are asked whether a file is theirs, smaller numbers first: a family that
            another one resembles comes before it.
        blocks: its kinds of blocks.
        modules: host module -> source module, each with weight and bias, outside the blocks.
        tensors: host tensor -> source tensor, outside the blocks.
        source_marks, host_marks: pieces of names that only this family has, in either spelling; a mark that begins with
            "^" stands at the beginning of a name, and "A & B" means both, in any names.
        metadata: (plain tensors, blocks of each kind) -> what nunchaku's files say about the model: config (diffusers),
            model_class and, where there is one, comfy_config; None: no such file can be written.
        lora: names in LoRAs.
        published: models that files exist of.
        optional: beginnings of host names that some members of the family lack, each altogether.
        without_bias: host modules of `modules` that have none.
        swapped_halves: host modules whose source rows are (scale, shift) where ComfyUI wants (shift, scale).
        shapes: host tensor outside the blocks -> its shape; each size is a number, "H", "2H", ... in terms of the
            model's width, "*" for any, or another letter for any that is the same wherever that letter stands.
        older_tensors: end of a host tensor's name -> how older ComfyUI and original files end it.
        older_suffixes: nunchaku's files of this family have the older tensor names (smooth, lora_down, lora_up).
        base_file: what the second file is called that holds all that is not quantized; "" where one file holds all.
        members: for each of several models that share all shapes, the words by which names and metadata tell it.
        kept: patterns of host Linears that the quantizer leaves in 16 bits.
        extras: (file name, its config) -> host tensors that ComfyUI wants and the file has no place for.
        behind_gelu: host Linear of a block -> its sources behind a GELU, where publishers disagree whether activations
            are unsigned there, so that biases are asked.
        variants: the same family as other publishers spell it, each recognised by marks of its own; the first is taken.
        row_major: the same family as vLLM-Omni spells it; None: as here.
    """

    name: str
    title: str
    blocks: tuple[BlockMap, ...]
    modules: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    source_marks: tuple[str, ...] = ()
    host_marks: tuple[str, ...] = ()
    metadata: Callable[[dict[str, Tensor], dict[str, int]], dict] | None = None
    lora: LoraNames | None = None
    published: tuple[Published, ...] = ()
    optional: frozenset[str] = frozenset()
    without_bias: frozenset[str] = frozenset()
    swapped_halves: frozenset[str] = frozenset()
    shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    older_tensors: dict[str, str] = field(default_factory=dict)
    older_suffixes: bool = False
    base_file: str = ""
    members: tuple[tuple[str, ...], ...] = ()
    kept: tuple[str, ...] = ()
    extras: Callable[[str, dict], dict[str, Tensor]] | None = None
    behind_gelu: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    variants: "tuple[Architecture, ...]" = ()
    row_major: "Architecture | None" = None
    covers: str = ""
    asked: int = 0

    @property
    def newer_names(self) -> dict[str, Mapping[str, str]]:
        """Prefix of a source block -> {older source name: newer one}."""
        return {block.source: block.newer for block in self.blocks if block.newer}

    @property
    def generic(self) -> bool:
        """Whether this is no described family but one made up from a file's own names; see generic.py."""
        return not self.blocks

    def count_blocks(self, names: Iterable[str], side: str) -> dict[str, int]:
        """How many blocks of each kind (keyed by BlockMap.host) a list of names holds.

        Args:
            side: "host" or "source", whose names they are.
        """
        counts = {block.host: 0 for block in self.blocks}
        prefixes = {getattr(block, side): block.host for block in self.blocks}
        depths = sorted({prefix.count(".") + 1 for prefix in prefixes})
        for name in names:
            pieces = name.split(".")
            for depth in depths:
                kind = prefixes.get(".".join(pieces[:depth]))
                if kind is not None and len(pieces) > depth and _is_index(pieces[depth]):
                    counts[kind] = max(counts[kind], int(pieces[depth]) + 1)
        return counts

    def plain_tensors(self) -> dict[str, str]:
        """Host tensor -> source tensor for everything outside the blocks."""
        pairs = {
            f"{h}.{e}": f"{s}.{e}"
            for h, s in self.modules.items()
            for e in ("weight", "bias")
            if e == "weight" or h not in self.without_bias
        }
        return pairs | self.tensors

    def linears(self, counts: dict[str, int]) -> Iterator[tuple[str, LinearMap]]:
        """(host name, map) of every Linear of every block, in the order of the model."""
        for block in self.blocks:
            for index in range(counts[block.host]):
                for linear in block.linears:
                    yield f"{block.host}.{index}.{linear.host}", linear

    def find_block(self, host: str) -> "Place | None":
        """Where in the blocks a host module or tensor lies, or None where it lies outside them."""
        for block in self.blocks:
            if host.startswith(block.host + "."):
                index, _, name = host[len(block.host) + 1 :].partition(".")
                if _is_index(index):
                    return Place(block, int(index), name)
        return None

    def find_linear(self, host: str) -> LinearMap | None:
        """The map of a host Linear of a block, or None where there is no such Linear."""
        place = self.find_block(host)
        return None if place is None else next((m for m in place.block.linears if m.host == place.rest), None)

    def input_name(self, host: str) -> str:
        """A name for the tensor that the pieces of one source read, so with one smoothing and proj_down; else ""."""
        place, linear = self.find_block(host), self.find_linear(host)
        if place is None or linear is None or linear.piece is None:
            return ""
        return f"{place.block.host}.{place.index}.{linear.sources[0]}"

    def shape_of(self, host_tensor: str, width: int) -> tuple[int | None, ...] | None:
        """The shape that a host tensor must have in a model of this width; None stands for any size, or any shape.

        Args:
            host_tensor: full name, with .weight or .bias.
            width: features of the residual stream.
        """
        module, _, end = host_tensor.rpartition(".")
        linear = self.find_linear(module)
        if linear is not None:
            sizes = tuple(None if n is None else int(n * width) for n in linear.shape)
            return sizes[: 2 if end == "weight" else 1]
        return tuple(_size(symbol, width) for symbol in self.symbols_of(host_tensor)) or None

    def symbols_of(self, host_tensor: str) -> tuple[str, ...]:
        """The shape of a tensor that is no Linear of a block, as it is described; () where it is not."""
        place, (module, _, end) = self.find_block(host_tensor), host_tensor.rpartition(".")
        described = self.shapes if place is None else place.block.plain_shapes
        name = host_tensor if place is None else place.rest
        if name not in described and end == "bias":
            weight = f"{module}.weight" if place is None else f"{name.rpartition('.')[0]}.weight"
            return described.get(weight, ())[:1]
        return described.get(name, ())

    @staticmethod
    def is_open(symbol: str) -> bool:
        """Whether a size of a description stands for any number, which is the same wherever the letter stands."""
        return symbol.isalpha() and symbol != WIDTH

    def expected_tensors(self, present: Callable[[str, str], bool]) -> dict[str, str]:
        """Host tensor -> source tensor of plain_tensors() that a file must have.

        Args:
            present: whether the file has a tensor, by its host name and by its source name. Of what is optional, all is
                expected where anything of it is present.
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
    if symbol == "*" or Architecture.is_open(symbol):
        return None
    return int(symbol[:-1] or 1) * width if symbol.endswith(WIDTH) else int(symbol)
