"""Reading nunchaku files: names, tile orders, interleaved modulation and its +1.

Source: deepcompressor's converter and nunchaku's loader, checked bit for bit against files that they wrote.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...kernels.format import GROUP_SIZE_AWQ, RANK_MULTIPLE
from .. import layouts
from ..errors import CheckpointError
from ..layer import Part, QuantizedLayer
from ..model import QuantizedModel
from ..models import Architecture, BlockMap, LinearMap
from .container import Checkpoint, read_json
from .nunchaku_names import Spelling, spelling_of
from .recognize import recognize

TILE = 128  # rows and columns of a packed layer are multiples of it


def read_nunchaku(checkpoint: Checkpoint) -> QuantizedModel:
    """Read a whole nunchaku checkpoint.

    Raises:
        CheckpointError: another kind of file, or missing, extra, misshapen or non-finite tensors.
    """
    architecture = recognize(checkpoint)
    model = QuantizedModel(architecture, metadata=dict(checkpoint.metadata))
    for name, entry in Reader(checkpoint, architecture).entries():
        if isinstance(entry, QuantizedLayer):
            model.layers[name] = entry
        else:
            model.plain[name] = entry
    return model


class Reader:
    """Walks a checkpoint layer by layer, and knows at the end what was missing and what was left over."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture):
        self.checkpoint, self.architecture = checkpoint, architecture
        self.spelling = spelling_of(architecture, list(checkpoint))
        self.used: set[str] = set()
        self.missing: list[str] = []

    def entries(self) -> Iterator[tuple[str, QuantizedLayer | Tensor]]:
        """(host name, layer or tensor), one at a time.

        Raises:
            CheckpointError: as read_nunchaku; missing and extra tensors are reported after the last entry.
        """
        counts = self.architecture.count_blocks(self.checkpoint, "source")
        self._check_counts(counts)
        for block in self.architecture.blocks:
            for index in range(counts[block.host]):
                yield from self._read_block(block, index)
        for host, source in self.architecture.plain_tensors().items():
            if source in self.checkpoint:
                tensor = self._take(source)
                module = host.rpartition(".")[0]
                yield host, layouts.swap_halves(tensor) if module in self.architecture.swapped_halves else tensor
            elif not self.architecture.is_optional(host):
                self.missing.append(source)
        self._report()

    def _read_block(self, block: BlockMap, index: int) -> Iterator[tuple[str, QuantizedLayer | Tensor]]:
        for linear in block.linears:
            names = [self.spelling.layer(block.source, index, source) for source in linear.sources]
            host = f"{block.host}.{index}.{linear.host}"
            quantized = [f"{name}.qweight" in self.checkpoint for name in names]
            if all(quantized):
                read = self._read_modulation if linear.modulation_chunks else self._read_layer
                yield host, read(linear, names)
            elif any(quantized):
                raise CheckpointError(
                    f"{self.checkpoint.name}: {' and '.join(names)} feed one layer, but only some of them are quantized."
                )
            else:
                yield from self._read_plain(host, linear, names)
        for host, sources in block.plain.items():
            tensors = [self._take(self.spelling.layer(block.source, index, s)) for s in sources]
            yield f"{block.host}.{index}.{host}", torch.cat(tensors) if len(tensors) > 1 else tensors[0]

    def _read_plain(self, host: str, linear: LinearMap, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """A layer that the quantizer left in 16 bits."""
        weights = [self._take(f"{name}.weight") for name in names]
        yield f"{host}.weight", torch.cat(weights, dim=1 if linear.stack == "columns" else 0)
        biases = [self._take(f"{name}.bias") for name in names if f"{name}.bias" in self.checkpoint]
        if biases:
            yield f"{host}.bias", sum(biases[1:], biases[0]) if linear.stack == "columns" else torch.cat(biases)

    def _take(self, name: str) -> Tensor:
        if name not in self.checkpoint:
            self.missing.append(name)
            self._report()
        self.used.add(name)
        return self.checkpoint[name]

    def _tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one checkpoint layer under canonical names, still in the file's order."""
        found = {}
        for canonical, suffix in self.spelling.suffixes.items():
            stored = f"{name}.{suffix}"
            if stored in self.checkpoint:
                found[canonical] = self._take(stored)
        return found

    def _read_part(self, name: str, unsigned: bool) -> Part:
        where = f"{self.checkpoint.name}: {name}"
        stored = self._tensors(name)
        qweight = stored["qweight"]
        if qweight.dtype != torch.int8 or qweight.ndim != 2 or qweight.shape[0] % TILE or qweight.shape[1] * 2 % TILE:
            raise CheckpointError(
                f"{where}.qweight is {str(qweight.dtype).removeprefix('torch.')} {tuple(qweight.shape)}, expected int8 "
                f"with rows and columns in multiples of {TILE} and {TILE // 2}. The file is damaged or of another format."
            )
        rows, columns = qweight.shape[0], qweight.shape[1] * 2
        scheme = "nvfp4" if stored.get("wscales", qweight).dtype == torch.float8_e4m3fn else "int4"
        rank = stored["proj_up"].shape[-1] if "proj_up" in stored else 0
        if rank == 0:  # no low-rank branch
            like = stored.get("bias", stored.get("smooth_factor", qweight))
            stored["proj_down"], stored["proj_up"] = (like.new_zeros(n, 0) for n in (columns, rows))
        if rank % RANK_MULTIPLE:
            raise CheckpointError(f"{where}: the rank is {rank}, expected a multiple of {RANK_MULTIPLE}. The file is damaged.")
        part = Part(scheme, (0, rows), (0, columns), unsigned and scheme == "int4", stored)
        part.check(where)  # shapes are the same in both orders, so a view cannot fail after this
        return Part(
            scheme, part.rows, part.columns, part.act_unsigned, {n: layouts.NUNCHAKU[n].from_stored(t) for n, t in stored.items()}
        )

    def _read_layer(self, linear: LinearMap, names: list[str]) -> QuantizedLayer:
        """One host Linear from the checkpoint layers that it is made of."""
        parts, biases = [], []
        row = column = 0
        for position, name in enumerate(names):
            part = self._read_part(name, position in linear.unsigned)
            tensors = dict(part.tensors)
            biases.append(tensors.pop("bias", None))
            rows, columns = (row, row + part.out_features), (column, column + part.in_features)
            parts.append(Part(part.scheme, rows, columns, part.act_unsigned, tensors))
            if linear.stack == "rows":
                row = rows[1]
            else:
                column = columns[1]
        if linear.stack == "columns":
            # The last source carries the bias of the layer; an earlier one has zeros, or a bias of its own to keep.
            for position, bias in enumerate(biases[:-1]):
                if bias is not None and bool(bias.any()):
                    parts[position].tensors["bias"] = bias
            bias = biases[-1]
        elif any(b is None for b in biases):
            bias = None
        else:
            bias = torch.cat(biases) if len(biases) > 1 else biases[0]
        self._check_tiling(linear, names, parts)
        return QuantizedLayer(parts[-1].columns[1], parts[-1].rows[1], tuple(parts), bias)

    def _check_tiling(self, linear: LinearMap, names: list[str], parts: list[Part]) -> None:
        shared = "in_features" if linear.stack == "rows" else "out_features"
        if len({getattr(part, shared) for part in parts}) > 1:
            sizes = " and ".join(f"{n}: {getattr(p, shared)}" for n, p in zip(names, parts, strict=True))
            raise CheckpointError(
                f"{self.checkpoint.name}: layers that feed one Linear disagree on {shared} ({sizes}). The file is damaged."
            )

    def _read_modulation(self, linear: LinearMap, names: list[str]) -> QuantizedLayer:
        (name,), chunks = names, linear.modulation_chunks
        where = f"{self.checkpoint.name}: {name}"
        stored = self._tensors(name)
        qweight = stored["qweight"]
        if qweight.dtype != torch.int32 or qweight.ndim != 2 or qweight.shape[0] * 4 % chunks or qweight.shape[1] % 32:
            raise CheckpointError(
                f"{where}.qweight is {str(qweight.dtype).removeprefix('torch.')} {tuple(qweight.shape)}, expected int32 "
                f"(outputs/4, inputs/2) of a modulation layer with {chunks} chunks."
            )
        rows, columns = qweight.shape[0] * 4, qweight.shape[1] * 2
        groups = columns // GROUP_SIZE_AWQ
        tensors = {"qweight": layouts.rows_from_interleaved(layouts.awq_qweight_from_nunchaku(qweight), chunks)}
        for scale in ("wscales", "wzeros"):
            if scale in stored:
                padded = stored[scale]
                if padded.ndim != 2 or padded.shape[0] < groups or padded.shape[1] != rows:
                    raise CheckpointError(
                        f"{where}.{scale} has shape {tuple(padded.shape)}, expected ({groups}, {rows}) or more rows."
                    )
                tensors[scale] = layouts.rows_from_interleaved(padded[:groups], chunks, dim=1)
        bias = stored.get("bias")
        if bias is not None:
            if tuple(bias.shape) != (rows,):
                raise CheckpointError(f"{where}.bias has shape {tuple(bias.shape)}, expected ({rows},).")
            stored_bias = layouts.rows_from_interleaved(bias, chunks)
            bias = layouts.remove_plus_one(stored_bias, chunks)
            if not torch.equal(layouts.add_plus_one(bias, chunks, stored_bias.dtype), stored_bias):
                tensors["stored_bias"] = stored_bias
        part = Part("awq", (0, rows), (0, columns), False, tensors)
        part.check(where)
        return QuantizedLayer(columns, rows, (part,), bias)

    def _check_counts(self, counts: dict[str, int]) -> None:
        config = read_json(self.checkpoint, "config")
        expected = {"double_blocks": config.get("num_layers"), "single_blocks": config.get("num_single_layers")}
        expected["blocks"] = expected["double_blocks"]
        for block, count in counts.items():
            if isinstance(expected.get(block), int) and expected[block] != count:
                raise CheckpointError(
                    f"{self.checkpoint.name}: {count} {block} found, {expected[block]} announced by the file's own "
                    "config. It is incomplete; download it again."
                )

    def _report(self) -> None:
        extra = sorted(set(self.checkpoint) - self.used) if not self.missing else []
        for title, names in (("missing", self.missing), ("unexpected", extra)):
            if names:
                first = ", ".join(names[:10])
                raise CheckpointError(
                    f"{self.checkpoint.name}: {len(names)} {title} tensor{'s' if len(names) > 1 else ''}: {first}"
                    f"{', ...' if len(names) > 10 else ''}. The file is incomplete or not a "
                    f"{self.architecture.title} file."
                )

