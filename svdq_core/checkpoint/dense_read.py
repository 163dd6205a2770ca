"""Reading an unquantized model one tensor at a time: from the host's and BFL's names, or diffusers', to the host's.

A file or folder is recognised by what is in it. Prefixes that other tools put in front are gone already: container.py.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from .. import layouts
from ..errors import CheckpointError
from ..models import SUPPORTED, BlockMap
from .container import Checkpoint
from .dialects import DIALECTS
from .read_plan import NAMED_AT_MOST, join
from .recognize import recognize_host, recognize_source

DTYPES = ("BF16", "F16", "F32")

# kind of block, host Linear -> the Linears of diffusers' models whose rows it stacks
_DIFFUSERS = {
    "double_blocks": {
        "img_mod.lin": ("norm1.linear",),
        "txt_mod.lin": ("norm1_context.linear",),
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "img_attn.proj": ("attn.to_out.0",),
        "txt_attn.proj": ("attn.to_add_out",),
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
    },
    "single_blocks": {
        "modulation.lin": ("norm.linear",),
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
    },
    "blocks": {
        "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        "attn.proj": ("attn1.to_out.0",),
        "cross_attn.q_linear": ("attn2.to_q",),
        "cross_attn.proj": ("attn2.to_out.0",),
        "mlp.fc1": ("ff.net.0.proj",),
        "mlp.fc2": ("ff.net.2",),
    },
}


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
                    f"{checkpoint.name}: an SVDQuant model already ({dialect.title}). Quantize the 16-bit model."
                )
        names = list(checkpoint)
        diffusers = any(name.startswith(("transformer_blocks.", "single_transformer_blocks.")) for name in names)
        if not diffusers and not any(name.startswith(tuple(f"{kind}." for kind in _DIFFUSERS)) for name in names):
            first = f" (first tensor: {names[0]})" if names else ""
            raise CheckpointError(
                f"{checkpoint.name}: no model that can be quantized here{first}. Supported: {SUPPORTED}."
            )
        recognize = recognize_source if diffusers else recognize_host
        self.architecture = recognize(checkpoint.name, names)
        self.counts = self.architecture.count_blocks(names, "source" if diffusers else "host")
        self._sources = self._find_diffusers() if diffusers else self._find_host()
        self._swapped = {f"{module}.{end}" for module in self.architecture.swapped_halves for end in ("weight", "bias")}
        self._swapped = self._swapped if diffusers else set()
        self._check()

    @property
    def ignored(self) -> list[str]:
        """Tensors of the file that the model has no place for."""
        used = {name for sources in self._sources.values() for name in sources}
        return sorted(set(self.checkpoint) - used)

    def __getitem__(self, name: str) -> Tensor:
        where = f"{self.checkpoint.name}: {self._sources[name][0]}"
        pieces = [self.checkpoint[source] for source in self._sources[name]]
        tensor = join(pieces, 0, where)
        return layouts.swap_halves(tensor) if name in self._swapped else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

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
            wanted += [f"{prefix}.{name}" for name in block.plain]
        for name in wanted:
            older = [name.removesuffix(n) + o for n, o in self.architecture.older_tensors.items() if name.endswith(n)]
            found[name] = next(((o,) for o in older if o in self.checkpoint and name not in self.checkpoint), (name,))
        return found

    def _find_diffusers(self) -> dict[str, tuple[str, ...]]:
        """Host tensor -> those of diffusers whose rows it stacks."""
        expected = self.architecture.expected_tensors(lambda host, source: source in self.checkpoint)
        found: dict[str, tuple[str, ...]] = {host: (source,) for host, source in expected.items()}
        for block, index in self._blocks():
            prefix, newer = f"{block.source}.{index}", self.architecture.newer_names.get(block.source, {})
            for linear in block.linears:
                modules = [f"{prefix}.{module}" for module in _DIFFUSERS[block.host][linear.host]]
                found[f"{block.host}.{index}.{linear.host}.weight"] = tuple(f"{m}.weight" for m in modules)
                if any(f"{m}.bias" in self.checkpoint for m in modules):
                    found[f"{block.host}.{index}.{linear.host}.bias"] = tuple(f"{m}.bias" for m in modules)
            for host, sources in block.plain.items():
                found[f"{block.host}.{index}.{host}"] = tuple(f"{prefix}.{newer.get(s, s)}" for s in sources)
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
        block = next(b for b in self.architecture.blocks if self.counts[b.host])
        first = f"{block.host}.0.{block.linears[0].host}.weight"
        width = max(self.shape(first)[-1] // block.linears[0].shape[1], 1)
        for name in self._sources:
            shape, expected = self.shape(name), self.architecture.shape_of(name, width)
            if expected is not None and (
                len(shape) != len(expected) or any(e not in (None, n) for e, n in zip(expected, shape, strict=True))
            ):
                wanted = ", ".join("any" if e is None else str(e) for e in expected)
                raise CheckpointError(
                    f"{self.checkpoint.name}: {self._sources[name][0]} gives {name} the shape {shape}, expected "
                    f"({wanted}) in a {self.architecture.title} model of width {width}. The file is damaged."
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the tensor."""
        shapes = [self.checkpoint.shape(source) for source in self._sources[name]]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()
