"""One layer of a comfy-native file: its stored tensors to parts in memory, and back. Both directions side by side."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.format import RANK_MULTIPLE
from .. import layouts
from ..errors import CheckpointError
from ..layer import GROUP_SIZE, Part
from ..stack import same_bits, slice_rows
from ..values import FLOAT, check_values
from .comfy_names import PART_RANKS, PART_ROWS, SVDQUANT, TILE_PACKED

AWQ_MIDPOINT = 8  # the format centres its codes on it: weight = (code - 8) * scale + zero
NamedTensors = dict[str, Tensor]


def unpack_svdquant(stored: NamedTensors, config: dict, where: str) -> tuple[list[Part], Tensor | None]:
    """An svdquant_w4a4 layer.

    Args:
        stored: tensors under canonical names, in the layer's order.
        config: the JSON of the layer.
        where: file and layer, for messages.

    Returns:
        Its parts, stacked on rows (one, unless this pack joined several), and its bias.

    Raises:
        CheckpointError: a tensor is missing, misshapen, of a wrong dtype or not finite, or the config is not
            understood.
    """
    stored, layout = dict(stored), config.get("layout")
    if layout not in (None, "natural", TILE_PACKED):
        raise CheckpointError(f"{where}: its layout is {layout!r}, expected natural or {TILE_PACKED}.")
    if layout == TILE_PACKED:
        stored = _from_tiles(stored, where)
    qweight, unsigned = stored.get("qweight"), config.get("act_unsigned", False)
    if not isinstance(unsigned, bool):
        raise CheckpointError(f"{where}: act_unsigned is {unsigned!r}, expected true or false.")
    qweight = _checked_weight(qweight, where)
    rows, columns = qweight.shape[0], qweight.shape[1] * 2
    bias = stored.pop("bias", None)
    part = Part("int4", (0, rows), (0, columns), unsigned, stored)
    part.check(where)
    if _is_smoothed(config, where):
        smooth, down = stored["smooth_factor"], stored["proj_down"]
        stored["proj_down"] = (down.float() / smooth.float()[:, None]).to(down.dtype)
    parts = _take_apart(part, config, where)
    return [_with_whole_ranks(p) for p in parts], bias


def pack_svdquant(part: Part) -> tuple[NamedTensors, dict]:
    """The inverse of unpack_svdquant for one part: tensors in plain order, and the config."""
    config: dict = {"format": SVDQUANT, "lowrank_branch_input_basis": "raw", "proj_down_smooth_folded": True}
    tensors = {name: tensor for name, tensor in part.tensors.items() if name != "bias"}
    original = tensors.get("smooth_factor_orig")
    if original is not None and same_bits(original, tensors["smooth_factor"]):
        del tensors["smooth_factor_orig"]  # it is made again when it is wanted
    return tensors, config | ({"act_unsigned": True} if part.act_unsigned else {})


def _from_tiles(stored: NamedTensors, where: str) -> NamedTensors:
    qweight = stored.get("qweight")
    if qweight is None or qweight.ndim != 4 or tuple(qweight.shape[2:]) != (32, layouts.KITCHEN_ROWS):
        raise CheckpointError(f"{where}.weight is not in tiles (N/128, K/64, 32, 128), as its layout says.")
    tiles, groups = qweight.shape[:2]
    for name, middle in (("wscales", groups), ("proj_up", None)):
        tensor = stored.get(name)
        if tensor is None:
            continue
        expected = (
            (tiles, middle, layouts.KITCHEN_ROWS) if middle or tensor.ndim != 3 else (tiles, tensor.shape[1], 128)
        )
        if tuple(tensor.shape) != expected:
            raise CheckpointError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, expected ({tiles}, {middle or 'R'}, "
                f"{layouts.KITCHEN_ROWS}) in tiles."
            )
    return {n: layouts.KITCHEN[n].from_stored(t) if n in layouts.KITCHEN else t for n, t in stored.items()}


def _checked_weight(qweight: Tensor | None, where: str) -> Tensor:
    group = GROUP_SIZE["int4"]
    if qweight is None:
        raise CheckpointError(f"{where}.weight is missing. The file is incomplete; download it again.")
    if qweight.dtype != torch.int8 or qweight.ndim != 2 or qweight.shape[1] % (group // 2) or not qweight.numel():
        raise CheckpointError(
            f"{where}.weight is {str(qweight.dtype).removeprefix('torch.')} {tuple(qweight.shape)}, expected int8 "
            f"(outputs, inputs/2) with inputs in multiples of {group}."
        )
    return qweight


def _is_smoothed(config: dict, where: str) -> bool:
    """Whether the low-rank branch expects activations after smoothing, unlike everywhere else."""
    basis, folded = config.get("lowrank_branch_input_basis", "raw"), config.get("proj_down_smooth_folded")
    if basis == "raw" and folded is not False:
        return False
    if basis == "post_smoothing" and folded is not True:
        return True
    raise CheckpointError(
        f"{where}: lowrank_branch_input_basis {basis!r} with proj_down_smooth_folded {folded!r} is not understood."
    )


def _with_whole_ranks(part: Part) -> Part:
    padding = (0, -part.rank % RANK_MULTIPLE)
    if not padding[1]:
        return part
    tensors = part.tensors | {name: F.pad(part[name], padding) for name in ("proj_down", "proj_up")}
    return Part(part.scheme, part.rows, part.columns, part.act_unsigned, tensors)


def joined_config(parts: Sequence[Part]) -> dict:
    """What unpack_svdquant needs to know to take a layer apart that stack.join_rows put together."""
    if len(parts) == 1:
        return {}
    return {PART_ROWS: [part.out_features for part in parts], PART_RANKS: [part.rank for part in parts]}


def _take_apart(part: Part, config: dict, where: str) -> list[Part]:
    """The inverse of join_rows; the part itself where nothing says that it was joined, or it was changed since."""
    heights, ranks = config.get(PART_ROWS), config.get(PART_RANKS)
    if heights is None or ranks is None:
        return [part]
    sizes = [*heights, *ranks] if isinstance(heights, list) and isinstance(ranks, list) else [None]
    if (
        not all(isinstance(n, int) and n >= 0 for n in sizes)
        or (len(heights), sum(heights), sum(ranks)) != (len(ranks), part.out_features, part.rank)
        or 0 in heights
    ):
        raise CheckpointError(f"{where}: {PART_ROWS} {heights} and {PART_RANKS} {ranks} do not make up the layer.")
    parts, branches = [], list(pairwise(accumulate(ranks, initial=0)))
    for rows, (start, stop) in zip(pairwise(accumulate(heights, initial=0)), branches, strict=True):
        piece = slice_rows(part, *rows)
        up = piece["proj_up"]
        if bool(up[:, :start].any()) or bool(up[:, stop:].any()):
            return [part]
        tensors = piece.tensors | {"proj_down": part["proj_down"][:, start:stop], "proj_up": up[:, start:stop]}
        parts.append(Part(part.scheme, rows, part.columns, part.act_unsigned, tensors))
    return parts


def unpack_awq(stored: NamedTensors, config: dict, where: str) -> tuple[Part, Tensor | None]:
    """An awq_w4a16 layer.

    Raises:
        CheckpointError: as unpack_svdquant.
    """
    qweight, group_size = stored.get("qweight"), config.get("group_size", GROUP_SIZE["awq"])
    if group_size != GROUP_SIZE["awq"]:
        raise CheckpointError(f"{where}: its group size is {group_size!r}, expected {GROUP_SIZE['awq']}.")
    qweight = _checked_weight(qweight, where)
    tensors, bias = dict(stored), stored.get("bias")
    tensors.pop("bias", None)
    rows, columns = qweight.shape[0], qweight.shape[1] * 2
    part = Part("awq", (0, rows), (0, columns), False, tensors)
    part.check(where)
    tensors["wzeros"] = _shifted(tensors["wzeros"], tensors["wscales"], -AWQ_MIDPOINT)
    if bias is not None:
        check_values(bias, FLOAT, f"{where}: bias")
    return part, bias


def pack_awq(part: Part) -> tuple[NamedTensors, dict]:
    """The inverse of unpack_awq: tensors and the config."""
    tensors = part.tensors | {"wzeros": _shifted(part["wzeros"], part["wscales"], AWQ_MIDPOINT)}
    return tensors, {"format": "awq_w4a16", "group_size": GROUP_SIZE["awq"]}


def _shifted(zeros: Tensor, scales: Tensor, steps: int) -> Tensor:
    """zeros + steps * scales, in the dtype of the scales where that is exact, else in float32."""
    exact = zeros.float() + steps * scales.float()
    rounded = exact.to(scales.dtype)
    return rounded if torch.equal(rounded.float(), exact) else exact
