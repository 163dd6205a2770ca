"""Reading an unquantized model one tensor at a time: from the host's and BFL's names, or diffusers', to the host's.

A file or folder is recognised by what is in it. Prefixes that other tools put in front are gone already: container.py.
"""

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from .. import layouts
from ..errors import CheckpointError
from ..models import FAMILIES, SUPPORTED, BlockMap
from .container import Checkpoint, read_json
from .dialects import DIALECTS, wanted_second_file
from .read_plan import NAMED_AT_MOST, join
from .recognize import recognize_dense

DTYPES = ("BF16", "F16", "F32")


def _which(checkpoint: Checkpoint) -> str:
    """Which 16-bit model it is, where the file needs that one beside it anyhow."""
    try:
        wanted = wanted_second_file(checkpoint)
    except CheckpointError:  # of a family that is not supported, or damaged: what is said already is enough
        return ""
    return f", {wanted}" if wanted else ""


class DenseModel(Mapping[str, Tensor]):
    """The tensors of an unquantized model by the host's names, each made when it is asked for.

    Args:
        checkpoint: a file or folder.

    Raises:
        CheckpointError: it is quantized, in less than 16 bits, of no supported family, or incomplete.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        for dialect in DIALECTS:
            if dialect.find_mark(checkpoint):
                raise CheckpointError(
                    f"{checkpoint.name}: an SVDQuant model already ({dialect.title}). Quantize the 16-bit model"
                    f"{_which(checkpoint)}."
                )
        names = list(checkpoint)
        kinds = {f"{prefix}." for family in FAMILIES for b in family.blocks for prefix in (b.host, b.source)}
        if not any(name.startswith(tuple(kinds)) for name in names):
            first = f" (first tensor: {names[0]})" if names else ""
            raise CheckpointError(
                f"{checkpoint.name}: no model that can be quantized here{first}. Supported: {SUPPORTED}."
            )
        self.architecture = recognize_dense(checkpoint.name, names)
        diffusers = self.has_names_of_diffusers = self._has_names_of_diffusers()
        self.counts = self.architecture.count_blocks(names, "source" if diffusers else "host")
        self._swapped: set[str] = set()  # host tensors whose row halves stand in the other order
        self._rows: dict[str, int] = {}  # host tensor in one row -> rows that it has in the file
        self._sources = self._find_diffusers() if diffusers else self._find_host()
        self._made = self._make_extras() if diffusers else {}
        self._check()

    @property
    def ignored(self) -> list[str]:
        """Tensors of the file that the model has no place for."""
        used = {name for sources in self._sources.values() for name in sources}
        return sorted(set(self.checkpoint) - used)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._made:
            return self._made[name]
        where = f"{self.checkpoint.name}: {self._sources[name][0]}"
        pieces = [self.checkpoint[source] for source in self._sources[name]]
        tensor = join(pieces, 0, where)
        tensor = tensor.flatten() if name in self._rows else tensor
        return layouts.swap_halves(tensor) if name in self._swapped else tensor

    def __iter__(self) -> Iterator[str]:
        yield from self._sources
        yield from self._made

    def __len__(self) -> int:
        return len(self._sources) + len(self._made)

    def __contains__(self, name: object) -> bool:
        return name in self._sources or name in self._made

    def _make_extras(self) -> dict[str, Tensor]:
        """What ComfyUI wants and diffusers does not store."""
        if self.architecture.extras is None:
            return {}
        made = self.architecture.extras(self.checkpoint.name, read_json(self.checkpoint, "config"))
        return {name: tensor for name, tensor in made.items() if name not in self._sources}

    def _has_names_of_diffusers(self) -> bool:
        """Whether more Linears of the first blocks are there under diffusers' names than under ComfyUI's."""
        here = there = 0
        for block in self.architecture.blocks:
            for linear in block.linears:
                here += f"{block.host}.0.{linear.host}.weight" in self.checkpoint
                modules = block.alternatives(linear)[0]
                there += all(f"{block.source}.0.{module}.weight" in self.checkpoint for module in modules)
        return there > here

    def _blocks(self) -> Iterator[tuple[BlockMap, int]]:
        for block in self.architecture.blocks:
            yield from ((block, index) for index in range(self.counts[block.host]))

    def _find_host(self) -> dict[str, tuple[str, ...]]:
        """Host tensor -> itself, or what older hosts call it."""
        found = {}
        wanted = list(self.architecture.expected_tensors(lambda host, source: host in self.checkpoint))
        for block, index in self._blocks():
            prefix = f"{block.host}.{index}"
            wanted += [f"{prefix}.{linear.host}.weight" for linear in block.linears]
            biases = (f"{prefix}.{linear.host}.bias" for linear in block.linears)
            wanted += [name for name in biases if name in self.checkpoint]
            plain = {n: f"{prefix}.{n}" for n in block.plain}
            wanted += [full for n, full in plain.items() if n not in block.optional or full in self.checkpoint]
        for name in wanted:
            older = [name.removesuffix(n) + o for n, o in self.architecture.older_tensors.items() if name.endswith(n)]
            found[name] = next(((o,) for o in older if o in self.checkpoint and name not in self.checkpoint), (name,))
        return found

    def _find_diffusers(self) -> dict[str, tuple[str, ...]]:
        """Host tensor -> those of diffusers whose rows it stacks."""
        expected = self.architecture.expected_tensors(lambda host, source: source in self.checkpoint)
        found: dict[str, tuple[str, ...]] = {host: (source,) for host, source in expected.items()}
        self._swapped = {host for host in found if host.rpartition(".")[0] in self.architecture.swapped_halves}
        for block, index in self._blocks():
            prefix, before = f"{block.source}.{index}", f"{block.host}.{index}"
            for linear in block.linears:
                modules = [f"{prefix}.{module}" for module in block.alternatives(linear)[0]]
                found[f"{before}.{linear.host}.weight"] = tuple(f"{m}.weight" for m in modules)
                if any(f"{m}.bias" in self.checkpoint for m in modules):
                    found[f"{before}.{linear.host}.bias"] = tuple(f"{m}.bias" for m in modules)
                self._swapped |= {f"{before}.{linear.host}.{end}" for end in ("weight", "bias") if linear.swapped}
            for host in block.plain:
                form = block.plain_map(host)
                names = tuple(f"{block.plain_prefix}.{index}.{block.newer.get(s, s)}" for s in form.sources)
                if host not in block.optional or any(name in self.checkpoint for name in names):
                    found[f"{before}.{host}"] = names
                    self._rows |= {f"{before}.{host}": form.rows} if form.rows else {}
        return found

    def _check(self) -> None:
        """Names, dtypes and shapes, from the header."""
        sources = [name for names in self._sources.values() for name in names]
        missing = [name for name in sources if name not in self.checkpoint]
        if missing:
            raise CheckpointError(
                f"{self.checkpoint.name}: {len(missing)} missing tensors: {', '.join(missing[:NAMED_AT_MOST])}"
                f"{', ...' if len(missing) > NAMED_AT_MOST else ''}. The file is incomplete or not a "
                f"{self.architecture.title} file."
            )
        for name in sources:
            dtype = self.checkpoint.dtype(name)
            if dtype not in DTYPES:
                raise CheckpointError(
                    f"{self.checkpoint.name}: {name} is {dtype}, expected {' or '.join(DTYPES)}. The model is in a "
                    "reduced precision already, and quantizing twice loses quality. Take the 16-bit file."
                )
        widths = self._widths()
        for name in self._sources:
            place = self.architecture.find_block(name)
            first = next(iter(widths.values()), 1)
            width = first if place is None else widths.get(place.block.host, first)
            shape, expected = self.shape(name), self.architecture.shape_of(name, width)
            if expected is not None and (
                len(shape) != len(expected) or any(e not in (None, n) for e, n in zip(expected, shape, strict=True))
            ):
                wanted = ", ".join("any" if e is None else str(e) for e in expected)
                raise CheckpointError(
                    f"{self.checkpoint.name}: {self._sources[name][0]} gives {name} the shape {shape}, expected "
                    f"({wanted}) in a {self.architecture.title} model of width {width}. The file is damaged."
                )

    def _widths(self) -> dict[str, int]:
        """Features of the residual stream, by kind of block."""
        found = {}
        for block in self.architecture.blocks:
            known = next((linear for linear in block.linears if linear.shape[1]), None)
            if known is not None and self.counts[block.host]:
                columns = self.shape(f"{block.host}.0.{known.host}.weight")[-1]
                found[block.host] = max(int(columns / (known.shape[1] or 1)), 1)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the tensor."""
        if name in self._made:
            return tuple(self._made[name].shape)
        shapes = [self.checkpoint.shape(source) for source in self._sources[name]]
        if name in self._rows:
            return (math.prod(shapes[0]),)
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()
