"""A random file of any described family in nunchaku's layout: published widths, and as many blocks as a size allows."""

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase

import torch

from svdquant_pack.svdq_core.checkpoint.nunchaku_names import writing_spelling
from svdquant_pack.svdq_core.checkpoint.output import Output
from svdquant_pack.svdq_core.models import Architecture, BlockMap, LinearMap, Published

OPEN = 64  # of a size that a description leaves open
FEW = 2  # blocks of a kind that are all there, however small the file
Make = Callable[..., Output]  # name, dtype, sizes -> a random tensor


class FamilyFile:
    """What is in the file.

    Args:
        family, model: which. make: a random tensor. precision: "int4" or "nvfp4". rank: of the low-rank branches.
        shapes: host tensor -> shape, where the description leaves it open and ComfyUI is to take the file.
    """

    def __init__(
        self,
        family: Architecture,
        model: Published,
        make: Make,
        precision: str,
        rank: int,
        *,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ):
        self.family, self.model, self.make, self.rank = family, model, make, rank
        self.shapes = shapes or {}
        self.nvfp4, self.spelling = precision == "nvfp4", writing_spelling(family)

    def outputs(self, nbytes: float) -> list[Output]:
        """All tensors, of so many blocks that they take about this number of bytes; of each kind at least FEW."""
        one = {block.host: sum(o.nbytes for o in self._block(block, 0)) for block in self.family.blocks}
        rest = list(self._outside())
        whole = sum(size * self.model.counts[host] for host, size in one.items())
        share = min(1.0, max(nbytes - sum(o.nbytes for o in rest), 1) / whole)
        for block in self.family.blocks:
            count = self.model.counts[block.host]
            # ComfyUI counts only the blocks that a family has many of, and makes up the others where they are missing
            for index in range(count if count <= FEW else max(round(count * share), FEW)):
                rest += self._block(block, index)
        return rest

    def _block(self, block: BlockMap, index: int) -> Iterator[Output]:
        for linear in block.linears:
            rows, columns = self.model.linear_size(block, linear)
            if linear.piece:
                continue  # the first one has all of the source
            siblings = block.siblings(linear)
            rows = sum(self.model.linear_size(block, sibling)[0] for sibling in siblings)
            spans = [((0, rows), (0, columns))] if linear.piece is not None else linear.rectangles(rows, columns)
            for source, ((top, bottom), (left, right)) in zip(linear.sources, spans, strict=True):
                name = self.spelling.layer(block.source, index, source)
                kept = any(fnmatchcase(f"{block.host}.{index}.{linear.host}", p) for p in self.family.kept)
                kept |= bool(linear.modulation_chunks and columns % OPEN)  # the curves of H3
                yield from self._layer(name, linear, bottom - top, right - left, kept)
        width = self.model.widths.get(block.host, self.model.width)
        for host in block.plain:
            form = block.plain_map(host)
            shape = self._shape(f"{block.host}.{index}.{host}", width)
            if form.rows:
                shape = (form.rows, shape[0] // form.rows)
            for source in form.sources:
                name = self.spelling.layer(block.plain_prefix, index, source)
                yield self.make(name, torch.bfloat16, shape[0] // len(form.sources), *shape[1:])

    def _layer(self, name: str, linear: LinearMap, rows: int, columns: int, kept: bool) -> Iterator[Output]:
        half, make, suffixes = torch.bfloat16, self.make, self.spelling.suffixes
        if kept:
            yield make(f"{name}.weight", half, rows, columns)
        elif linear.modulation_chunks:
            yield make(f"{name}.qweight", torch.int32, rows // 4, columns // 2)
            for scale in ("wscales", "wzeros"):
                yield make(f"{name}.{scale}", half, columns // 64, rows)
        else:
            yield make(f"{name}.qweight", torch.int8, rows, columns // 2)
            if self.nvfp4:
                yield make(f"{name}.wscales", torch.float8_e4m3fn, columns // 16, rows)
                yield make(f"{name}.wtscale", half, 1)
            else:
                yield make(f"{name}.wscales", half, columns // 64, rows)
            for vector in ("smooth_factor", "smooth_factor_orig"):
                yield make(f"{name}.{suffixes[vector]}", half, columns)
            yield make(f"{name}.{suffixes['proj_down']}", half, columns, self.rank)
            yield make(f"{name}.{suffixes['proj_up']}", half, rows, self.rank)
        if linear.bias:
            bias = make(f"{name}.bias", half, rows)
            yield raised(bias) if linear.modulation_chunks > 1 and not kept else bias

    def _outside(self) -> Iterator[Output]:
        for host, source in self.family.plain_tensors().items():
            if not self.family.is_optional(host):
                yield self.make(source, torch.bfloat16, *self._shape(host, self.model.width))

    def _shape(self, host: str, width: int) -> tuple[int, ...]:
        if host in self.shapes:
            return self.shapes[host]
        module, _, end = host.rpartition(".")
        found = self.family.shape_of(f"{module}.weight" if end == "bias" else host, width)
        shape = (width,) if found is None else tuple(OPEN if size is None else size for size in found)
        return shape[:1] if end == "bias" else shape


def raised(bias: Output) -> Output:
    """A bias with 1 added to the scales among interleaved rows, as nunchaku stores them."""

    def blocks() -> Iterator[torch.Tensor]:
        for tensor in bias.blocks():
            tensor[1::3] += 1
            yield tensor

    return Output(bias.name, bias.shape, bias.dtype, blocks)
