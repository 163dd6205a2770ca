"""One layer of a nunchaku-style file: its stored tensors to a part in memory, and back.

Both directions of each kind of layer stand next to each other. Names are canonical here; how a file spells them is in
nunchaku_names.py. Source: deepcompressor's converter and nunchaku's loader, checked bit for bit on files of theirs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...kernels.format import GROUP_SIZE_AWQ, GROUP_SIZE_INT4, GROUP_SIZE_NVFP4, RANK_MULTIPLE
from .. import layouts
from ..arena import Arena, aligned
from ..errors import CheckpointError
from ..layer import Part
from ..modulation_codes import codes_from_nunchaku, codes_to_nunchaku
from ..stack import same_bits
from ..values import FLOAT, check_values
from .nunchaku_names import EXACT, SIGNED_BIAS
from .output import Output, whole
from .source_rows import TILE

AWQ_GROUP_ROWS = 16  # scale rows of a modulation layer are padded with zeros to a multiple of it

SVDQUANT_TENSORS = (
    *("qweight", "wscales", "wtscale", "wcscales", "bias"),
    *("smooth_factor", "smooth_factor_orig", "proj_down", "proj_up"),
)
MODULATION_TENSORS = ("qweight", "wscales", "wzeros", "bias", "proj_down", "proj_up")


def room_for(stored: dict[str, Tensor]) -> int:
    """Bytes of an arena that a layer's tensors fill, what is worked out of them on loading included."""
    found = sum(aligned(tensor.nbytes) for name, tensor in stored.items() if name != "bias")
    qweight = stored["qweight"]
    channels = qweight.shape[0] if _is_matrix(qweight, torch.int8, TILE, TILE // 2) else 0
    return found + aligned(channels * torch.float32.itemsize)


def unpack_layer(
    stored: dict[str, Tensor], unsigned: bool, where: str, arena: Arena | None = None
) -> tuple[Part, Tensor | None]:
    """An int4 or nvfp4 layer.

    Args:
        stored: tensors in the file's order, under canonical names.
        unsigned: its role is behind a GELU; int4 activations are then unsigned.
        where: file and layer, for messages.
        arena: where the tensors of the part go; memory of their own if None.

    Returns:
        The part, covering rows (0, N) and columns (0, K), and its bias.

    Raises:
        CheckpointError: a tensor is missing, misshapen, of a wrong dtype or not finite.
    """
    qweight = stored["qweight"]
    if not _is_matrix(qweight, torch.int8, TILE, TILE // 2):
        raise CheckpointError(
            f"{where}.qweight is {_describe(qweight)}, expected int8 with rows and columns in multiples of {TILE} and "
            f"{TILE // 2}. The file is damaged or of another format."
        )
    rows, columns = qweight.shape[0], qweight.shape[1] * 2
    exact = {name: tensor for name, tensor in stored.items() if name.startswith(EXACT)}
    signed_bias = stored.get(SIGNED_BIAS)
    stored = {name: tensor for name, tensor in stored.items() if name in SVDQUANT_TENSORS}
    stored = _with_low_rank(stored, rows, columns)
    scheme = scheme_of(stored.get("wscales"), columns, where)
    if "wtscale" in stored and stored["wtscale"].ndim == 0:
        stored["wtscale"] = stored["wtscale"].reshape(1)
    part = Part(scheme, (0, rows), (0, columns), unsigned and scheme == "int4", stored)
    part.check(where)  # shapes are the same in both orders, so a view cannot fail after this
    if part.rank % RANK_MULTIPLE:
        raise CheckpointError(
            f"{where}: the rank is {part.rank}, expected a multiple of {RANK_MULTIPLE}. The file is damaged."
        )
    natural = {
        name: layouts.NUNCHAKU[name].from_stored(tensor, out=None if name == "bias" else _room(arena, tensor))
        for name, tensor in stored.items()
    }
    natural |= _exact_tensors(exact, natural, where)
    bias = natural.pop("bias", None)
    if signed_bias is not None:
        check_values(signed_bias, FLOAT, f"{where}: {SIGNED_BIAS}")
        return Part(scheme, part.rows, part.columns, False, natural), signed_bias
    return Part(scheme, part.rows, part.columns, part.act_unsigned, natural), bias


def scheme_of(wscales: Tensor | None, columns: int, where: str) -> str:
    """ "int4" or "nvfp4", by the dtype of a layer's scales.

    Raises:
        CheckpointError: there are as many of them as in the other scheme.
    """
    fp8 = wscales is not None and wscales.dtype == torch.float8_e4m3fn
    if wscales is not None and wscales.ndim == 2:
        own, other = (GROUP_SIZE_NVFP4, GROUP_SIZE_INT4) if fp8 else (GROUP_SIZE_INT4, GROUP_SIZE_NVFP4)
        if wscales.shape[0] * own != columns and wscales.shape[0] * other == columns:
            wanted = "bfloat16 or float16, as in INT4" if fp8 else "float8_e4m3fn, as in NVFP4"
            raise CheckpointError(
                f"{where}: wscales is {_describe(wscales)}, one for each {other} inputs; such scales are expected in "
                f"{wanted}. The tool that wrote the file has converted them; take the file as it was published."
            )
    return "nvfp4" if fp8 else "int4"


def _exact_tensors(exact: dict[str, Tensor], rounded: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """What was kept beside rounded tensors, by the names of those."""
    found = {}
    for name, tensor in exact.items():
        short = name.removeprefix(EXACT)
        check_values(tensor, FLOAT, f"{where}: {name}")
        if short not in rounded or tensor.shape != rounded[short].shape:
            raise CheckpointError(f"{where}: {name} has shape {tuple(tensor.shape)}, unlike {short}. It is damaged.")
        found[short] = tensor
    return found


def _with_low_rank(stored: dict[str, Tensor], rows: int, columns: int) -> dict[str, Tensor]:
    """A layer without a low-rank branch gets one of rank 0."""
    halves = [name for name in ("proj_down", "proj_up") if name in stored and stored[name].numel()]
    if not halves and "smooth_factor" in stored:
        like = stored["smooth_factor"]
        stored["proj_down"], stored["proj_up"] = like.new_zeros(columns, 0), like.new_zeros(rows, 0)
    return stored


def svdquant_outputs(layer: str, part: Part, bias: Tensor | None, suffixes: dict[str, str]) -> Iterator[Output]:
    """The inverse of unpack_layer.

    Args:
        layer: its name in the file. suffixes: canonical tensor name -> suffix.
        bias: (N,) or None.
    """
    tensors = part.tensors | ({} if bias is None else {"bias": bias})
    tensors.setdefault("smooth_factor_orig", tensors["smooth_factor"])
    for name, tensor in tensors.items():
        yield whole(f"{layer}.{suffixes[name]}", tensor, layouts.NUNCHAKU[name].to_stored)


def unpack_modulation(
    stored: dict[str, Tensor], chunks: int, where: str, arena: Arena | None = None
) -> tuple[Part, Tensor | None]:
    """An AWQ layer whose rows are interleaved over `chunks` and whose bias has 1 added to its scale chunks.

    Args:
        chunks: 1 for rows in plain order and a bias as it is.
        arena: as unpack_layer.

    Returns:
        The part, and its bias: float32 without the 1, or as stored where chunks is 1.

    Raises:
        CheckpointError: as unpack_layer.
    """
    qweight = stored["qweight"]
    if not _is_matrix(qweight, torch.int32, 1, GROUP_SIZE_AWQ // 2) or qweight.shape[0] * 4 % chunks:
        raise CheckpointError(
            f"{where}.qweight is {_describe(qweight)}, expected int32 (outputs/4, inputs/2) of a modulation layer with "
            f"{chunks} chunks. The file is damaged or of another format."
        )
    rows, columns = qweight.shape[0] * 4, qweight.shape[1] * 2
    room = None if arena is None else arena.take((rows, columns // 2), torch.int8)
    tensors = {"qweight": codes_from_nunchaku(qweight, chunks, out=room)}
    for name in ("wscales", "wzeros"):
        if name in stored:
            groups = columns // GROUP_SIZE_AWQ
            tensors[name] = _unpack_groups(
                stored[name], rows=rows, groups=groups, chunks=chunks, what=f"{where}.{name}", arena=arena
            )
    if "proj_down" in stored:  # not in tiles, but transposed
        tensors["proj_down"] = stored["proj_down"].T if stored["proj_down"].ndim == 2 else stored["proj_down"]
    if "proj_up" in stored:
        fits = stored["proj_up"].ndim == 2 and stored["proj_up"].shape[0] == rows
        tensors["proj_up"] = layouts.rows_from_interleaved(stored["proj_up"], chunks) if fits else stored["proj_up"]
    if arena is not None:
        tensors |= {name: arena.copy(tensors[name]) for name in ("proj_down", "proj_up") if name in tensors}
    bias = stored.get("bias")
    if bias is not None:
        check_values(bias, FLOAT, f"{where}: bias")
        if tuple(bias.shape) != (rows,):
            raise CheckpointError(
                f"{where}: bias has shape {tuple(bias.shape)}, expected ({rows},). The file is damaged."
            )
        natural = layouts.rows_from_interleaved(bias, chunks)
        bias = layouts.remove_plus_one(natural, chunks)
        if not same_bits(layouts.add_plus_one(bias, chunks, natural.dtype), natural):
            tensors["stored_bias"] = natural
    exact = {name: tensor for name, tensor in stored.items() if name.startswith(EXACT)}
    found = _exact_tensors(exact, tensors | ({} if bias is None else {"bias": bias}), where)
    bias = found.pop("bias", bias)
    part = Part("awq", (0, rows), (0, columns), False, tensors | found)
    part.check(where)
    return part, bias


def _room(arena: Arena | None, like: Tensor) -> Tensor | None:
    return None if arena is None else arena.take(tuple(like.shape), like.dtype)


def _unpack_groups(stored: Tensor, *, rows: int, groups: int, chunks: int, what: str, arena: Arena | None) -> Tensor:
    most = groups + -groups % AWQ_GROUP_ROWS
    if stored.ndim != 2 or not groups <= stored.shape[0] <= most or stored.shape[1] != rows:
        more = f" or up to ({most}, {rows})" if most > groups else ""
        raise CheckpointError(
            f"{what} has shape {tuple(stored.shape)}, expected ({groups}, {rows}){more}. The file is damaged."
        )
    return layouts.rows_from_interleaved(stored[:groups], chunks, dim=1, out=_room(arena, stored[:groups]))


def modulation_outputs(
    layer: str, part: Part, bias: Tensor | None, *, chunks: int, dtype: torch.dtype, suffixes: dict[str, str]
) -> Iterator[Output]:
    """The inverse of unpack_modulation.

    Args:
        layer: its name in the file. suffixes: canonical tensor name -> suffix.
        bias: (N,) without the 1, or None.
        dtype: of the bias in the file.
    """
    rows, columns = part.out_features, part.in_features

    def qweight() -> list[Tensor]:
        return [codes_to_nunchaku(part["qweight"], chunks)]

    yield Output(f"{layer}.{suffixes['qweight']}", (rows // 4, columns // 2), torch.int32, qweight)
    for name in ("wscales", "wzeros"):
        natural = layouts.rows_to_interleaved(part[name], chunks, dim=1)
        padding = natural.new_zeros(-natural.shape[0] % AWQ_GROUP_ROWS, rows)
        yield whole(f"{layer}.{suffixes[name]}", torch.cat((natural, padding)))
    if part.rank:
        yield whole(f"{layer}.{suffixes['proj_down']}", part["proj_down"].T)
        yield whole(f"{layer}.{suffixes['proj_up']}", layouts.rows_to_interleaved(part["proj_up"], chunks))
    if bias is not None:
        stored = part.get("stored_bias")
        natural = layouts.add_plus_one(bias, chunks, dtype) if stored is None else stored
        yield whole(f"{layer}.{suffixes['bias']}", layouts.rows_to_interleaved(natural, chunks))


def _is_matrix(tensor: Tensor, dtype: torch.dtype, rows: int, columns: int) -> bool:
    """Two-dimensional, not empty, of that dtype, in multiples of rows and columns."""
    if tensor.dtype != dtype or tensor.ndim != 2 or tensor.numel() == 0:
        return False
    return tensor.shape[0] % rows == 0 and tensor.shape[1] % columns == 0


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
