"""Reading vLLM-Omni's files: nunchaku's names with tensors in plain order.

Names and shapes are nunchaku's, so that such a file would be read as noise: what it is stands in the config beside it
(quant_method svdquant) or in its metadata (layout row_major), and the codes are uint8. Two versions of the converter
exist. The first, of Z-Image, left smoothing, bias and channel scales in nunchaku's order; the second, of MiniMax H3,
did not, and writes down the model's family. Source: both versions of the converter.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import layouts
from ..errors import CheckpointError
from ..layer import Part, QuantizedLayer
from ..models import Architecture, LinearMap
from ..pieces import swap_row_halves
from ..stack import slice_rows
from .assemble import combine
from .container import Checkpoint, read_json
from .nunchaku_layers import SVDQUANT_TENSORS, scheme_of
from .nunchaku_names import NEWER_SUFFIXES, Spelling
from .nunchaku_read import StoredLayer, check_counts, finish, plan_outside_blocks, plan_plain, plan_unquantized
from .nunchaku_read import want_layer as want
from .read_plan import Plan
from .recognize import recognize_source
from .source_rows import row_spans

METHOD, LAYOUT = "svdquant", "row_major"
_VECTORS = ("smooth_factor", "wcscales", "bias")


def is_row_major(checkpoint: Checkpoint) -> bool:
    """Whether a file says that it is vLLM-Omni's."""
    if read_json(checkpoint, "conversion").get("layout") == LAYOUT:
        return True
    said = read_json(checkpoint, "config").get("quantization_config")
    return any(entry.get("quant_method", entry.get("method")) == METHOD for entry in _dicts(said) if "rank" in entry)


def _dicts(value: object) -> Iterator[dict]:
    """A dictionary and those in it: a setting for each component of a pipeline."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            if isinstance(inner, dict):
                yield inner


def plan_row_major(checkpoint: Checkpoint) -> Plan:
    """The plan for a folder of vLLM-Omni's converter.

    Raises:
        CheckpointError: the model is of an unknown family, or it is not said in which order its vectors are.
    """
    family = recognize_source(checkpoint.name, checkpoint, row_major=True)
    natural = _natural_vectors(checkpoint, family)
    plan, spelling = Plan(checkpoint, family, _metadata(checkpoint)), Spelling(NEWER_SUFFIXES, family.newer_names)
    counts = family.count_blocks(checkpoint, "source")
    check_counts(plan, counts)
    for block in family.blocks:
        for index in range(counts[block.host]):
            for linear in block.linears:
                host = f"{block.host}.{index}.{linear.host}"
                names = [spelling.layer(block.source, index, source) for source in linear.sources]
                if all(f"{name}.qweight" in checkpoint for name in names):
                    stored = [want(plan, name, NEWER_SUFFIXES) for name in names]
                    _plan_linear(plan, host, linear, stored, natural)
                else:
                    plan_unquantized(plan, host, linear, names)
            plan_plain(plan, block, index, spelling)
    plan_outside_blocks(plan, spelling=spelling)
    finish(plan)
    return plan


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        k: text for k, text in checkpoint.metadata.items() if k not in ("conversion", "quantization_config", "config")
    }


def _natural_vectors(checkpoint: Checkpoint, family: Architecture) -> bool:
    if read_json(checkpoint, "conversion").get("model_family") or family.name == "minimax_h3":
        return True
    if any(".feed_forward.w13." in name for name in checkpoint):
        return False
    raise CheckpointError(
        f"{checkpoint.name}: a {family.title} model in vLLM-Omni's layout, and nothing says which version of its "
        "converter wrote it: smoothing and bias may be in one of two orders, and the wrong one makes noise. Take the "
        "nunchaku file that it was made of."
    )


def _plan_linear(plan: Plan, host: str, linear: LinearMap, stored: list[StoredLayer], natural: bool) -> None:
    name = plan.architecture.input_name(host)
    plan.add(host, stored[0][0], lambda: _read_linear(plan.checkpoint, linear, stored, natural, name))


def _read_linear(
    checkpoint: Checkpoint, linear: LinearMap, layers: list[StoredLayer], natural: bool, input_name: str
) -> QuantizedLayer:
    parts = []
    for position, (name, stored) in enumerate(layers):
        where = f"{checkpoint.name}: {name}"
        tensors = {kind: checkpoint[full] for kind, full in stored.items()}
        part, bias = _read_part(tensors, natural, position in linear.unsigned, where)
        if linear.piece is not None:
            ((start, stop),) = row_spans(linear, part.out_features, part.in_features, where)
            piece = slice_rows(part, start, stop)
            part = Part(part.scheme, (0, stop - start), part.columns, part.act_unsigned, piece.tensors)
            bias = None if bias is None else bias[start:stop]
        if linear.swapped:
            swapped = swap_row_halves(QuantizedLayer(part.in_features, part.out_features, (part,), bias))
            if swapped is None:
                raise CheckpointError(f"{where}: {part.out_features} rows have no halves. The file is damaged.")
            part, bias = swapped.parts[0], swapped.bias
        parts.append((name, part, bias))
    return combine(checkpoint.name, linear.stack, parts, arena=None, has_bias=linear.bias, input_name=input_name)


def _read_part(tensors: dict[str, Tensor], natural: bool, unsigned: bool, where: str) -> tuple[Part, Tensor | None]:
    qweight = tensors["qweight"]
    if qweight.dtype not in (torch.uint8, torch.int8) or qweight.ndim != 2 or not qweight.numel():
        raise CheckpointError(
            f"{where}.qweight is {str(qweight.dtype).removeprefix('torch.')} {tuple(qweight.shape)}, expected uint8 "
            "(outputs, inputs/2). The file is damaged or of another format."
        )
    rows, columns = qweight.shape[0], 2 * qweight.shape[1]
    found = {name: tensor for name, tensor in tensors.items() if name in SVDQUANT_TENSORS}
    found["qweight"] = qweight.view(torch.int8)
    if "wtscale" in found:
        found["wtscale"] = found["wtscale"].reshape(-1)
    bias = found.pop("bias", None)
    scheme = scheme_of(found.get("wscales"), columns, where)
    part = Part(scheme, (0, rows), (0, columns), unsigned and scheme == "int4", found)
    part.check(where)
    if not natural:
        for name in _VECTORS:
            if name in found:
                found[name] = layouts.vector_from_nunchaku(found[name])
        bias = None if bias is None else layouts.vector_from_nunchaku(bias)
    return part, bias
