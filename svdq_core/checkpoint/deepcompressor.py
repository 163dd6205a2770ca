"""Reading deepcompressor's own output: dense weights on the grid of their scales, back to codes.

model.pt holds diffusers' modules; scale.pt, smooth.pt and branch.pt are keyed by one of the modules that share a
quantity: BlockMap.native.
Source: deepcompressor's converter to nunchaku files; a folder read here equals the file that the converter makes of it,
except that a modulation bias has not been rounded with 1 added.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.format import E2M1_VALUES, GELU_SHIFT, GROUP_SIZE_INT4, GROUP_SIZE_NVFP4, RANK_MULTIPLE
from ...kernels.packing import pack_nibbles
from ..errors import CheckpointError
from ..layer import GROUP_SIZE, Part, QuantizedLayer
from ..models import BlockMap, LinearMap, NativeLayer
from ..values import FLOAT, check_values
from .assemble import combine
from .container import Checkpoint
from .nunchaku_read import plan_outside_blocks
from .read_plan import Plan, join
from .recognize import recognize_source

AWQ_ZERO_POINT = 7
WRAPPED = ".linear"  # behind the name of a module whose activations are shifted
FOLDED_FLAG = "smooth.pt/proj.fuse_when_possible"  # true where it is absent
OFF_GRID = 0.25  # of a step; weights rounded to 16 bits are off by 0.02 at most


@dataclass(frozen=True)
class _Stored:
    """Names of the tensors of one layer in the folder; "" where there is none."""

    weights: list[str]
    biases: list[str]
    scales: list[str]
    subscales: list[str]
    zeros: list[str]
    shift: str
    smooth: str
    branch: str
    folded: bool

    def __iter__(self):
        yield from (*self.weights, *self.biases, *self.scales, *self.subscales, *self.zeros)
        halves = [f"{self.branch}/{half}.weight" for half in ("a", "b")] if self.branch else []
        yield from (name for name in (self.shift, self.smooth, *halves) if name)


def plan_deepcompressor(checkpoint: Checkpoint) -> Plan:
    """The plan for a folder with model.pt, scale.pt and, if the run had them, smooth.pt and branch.pt.

    Raises:
        CheckpointError: the model is of an unknown family, or of one that deepcompressor does not write.
    """
    names = [name.removeprefix("model.pt/") for name in checkpoint if name.startswith("model.pt/")]
    architecture = recognize_source(checkpoint.name, names)
    if not all(block.native for block in architecture.blocks):
        raise CheckpointError(
            f"{checkpoint.name}: deepcompressor's own output of a {architecture.title} model, whose names there are "
            "not described here. Convert it to a nunchaku file with deepcompressor's converter."
        )
    plan = Plan(checkpoint, architecture, metadata={})
    counts = architecture.count_blocks(names, "source")
    for block in architecture.blocks:
        for index in range(counts[block.host]):
            _plan_block(plan, block, index)
    plan_outside_blocks(plan, "model.pt/")
    return plan


def _plan_block(plan: Plan, block: BlockMap, index: int) -> None:
    prefix = f"{block.source}.{index}"
    for linear in block.linears:
        layers = [_find(plan, prefix, block.native[source]) for source in linear.sources]
        host = f"{block.host}.{index}.{linear.host}"
        for stored in layers:
            plan.want(*stored)
        if all(stored.scales for stored in layers):
            plan.add(host, layers[0].weights[0], lambda m=linear, s=layers: _read_linear(plan.checkpoint, m, s))
        elif any(stored.scales for stored in layers):
            raise CheckpointError(
                f"{plan.checkpoint.name}: {prefix}: only some of {' and '.join(linear.sources)} are quantized, and "
                "they feed one layer. The folder is incomplete."
            )
        else:
            _plan_unquantized(plan, host, linear, layers)
    for host in block.plain:
        sources = block.plain_map(host).sources
        names = [f"model.pt/{prefix}.{block.newer.get(source, source)}" for source in sources]
        plan.add_plain(f"{block.host}.{index}.{host}", names)


def _find(plan: Plan, prefix: str, layer: NativeLayer) -> _Stored:
    """Where the tensors of one layer are, wrapped or not."""
    there = plan.checkpoint

    def spell(module: str) -> str:
        return module + WRAPPED if f"model.pt/{prefix}.{module}{WRAPPED}.weight" in there else module

    modules = [f"{prefix}.{spell(module)}" for module in layer.modules]
    smooth = f"smooth.pt/{prefix}.{spell(layer.smooth or layer.modules[0])}"
    branch = f"branch.pt/{prefix}.{spell(layer.branch or layer.modules[0])}"
    shift = f"model.pt/{prefix}.{layer.modules[0]}.shift"
    weights = [f"model.pt/{module}.weight" for module in modules]

    def present(file: str, end: str) -> list[str]:
        names = [f"{file}/{module}.{end}" for module in modules]
        return names if any(name in there for name in names) else []  # if one is there, all are wanted

    has_branch = any(f"{branch}/{half}.weight" in there for half in ("a", "b"))
    return _Stored(
        weights=weights,
        biases=present("model.pt", "bias"),
        scales=present("scale.pt", "weight.scale.0"),
        subscales=present("scale.pt", "weight.scale.1"),
        zeros=present("scale.pt", "weight.zero") + present("scale.pt", "weight.scaled_zero"),
        shift=shift if shift in there else "",
        smooth=smooth if smooth in there else "",
        branch=branch if has_branch else "",
        folded=layer.foldable and there.flags.get(FOLDED_FLAG, True) is not False,
    )


def _plan_unquantized(plan: Plan, host: str, linear: LinearMap, layers: list[_Stored]) -> None:
    """A layer that the recipe left alone."""
    if any(stored.smooth or stored.branch or stored.shift for stored in layers):
        raise CheckpointError(
            f"{plan.checkpoint.name}: {layers[0].weights[0]} has no scale, but smoothing or a low-rank branch. The "
            "folder is incomplete."
        )
    dim, weights = 1 if linear.stack == "columns" else 0, [name for stored in layers for name in stored.weights]
    where = f"{plan.checkpoint.name}: {weights[0]}"
    plan.add(f"{host}.weight", weights[0], lambda: join([plan.checkpoint[name] for name in weights], dim, where))
    biases = [name for stored in (layers if dim == 0 else layers[-1:]) for name in stored.biases]
    plan.add_plain(f"{host}.bias", biases or [weights[-1].replace(".weight", ".bias")])


def _read_linear(checkpoint: Checkpoint, linear: LinearMap, layers: list[_Stored]) -> QuantizedLayer:
    parts = []
    for source, stored in zip(linear.sources, layers, strict=True):
        where = f"{checkpoint.name}: {stored.weights[0]}"
        read = _read_modulation if linear.modulation_chunks else _read_part
        part, bias = read(checkpoint, stored, where)
        part.check(where)
        parts.append((source, part, bias))
    return combine(checkpoint.name, linear.stack, parts)


def _joined(checkpoint: Checkpoint, names: list[str], where: str) -> Tensor:
    tensor = join([checkpoint[name] for name in names], 0, where)
    check_values(tensor, FLOAT, where)
    return tensor


def _read_part(checkpoint: Checkpoint, stored: _Stored, where: str) -> tuple[Part, Tensor | None]:
    weight, bias = _dense(checkpoint, stored, where)
    rows, columns = weight.shape
    scheme = "nvfp4" if stored.subscales else "int4"
    tensors = _read_codes(checkpoint, stored, weight, where)
    smooth = checkpoint[stored.smooth] if stored.smooth else weight.new_ones(columns)
    if tuple(smooth.shape) != (columns,):
        raise CheckpointError(f"{where}: its smoothing has shape {tuple(smooth.shape)}, expected ({columns},).")
    smooth = smooth.to(weight.dtype)
    tensors["smooth_factor"] = torch.ones_like(smooth) if stored.folded else smooth
    tensors["smooth_factor_orig"] = smooth
    down, up = _read_branch(checkpoint, stored, weight, where)
    down = down.double() / tensors["smooth_factor"].double()[:, None]
    if stored.shift:
        shift = checkpoint[stored.shift]
        if shift.numel() != 1 or float(shift) != GELU_SHIFT:
            raise CheckpointError(
                f"{where}: activations are shifted by {shift.flatten()[:3].tolist()}, expected {GELU_SHIFT}: another "
                "shift cannot be run here."
            )
        if stored.branch and bias is not None:
            # model.pt took the shift through the residual weight out of the bias; the branch sees unshifted activations
            bias = (bias.double() + (up.double() @ down.sum(0)) * GELU_SHIFT).to(weight.dtype)
    padding = (0, -up.shape[1] % RANK_MULTIPLE)
    tensors["proj_down"] = torch.nn.functional.pad(down.to(weight.dtype), padding)
    tensors["proj_up"] = torch.nn.functional.pad(up, padding)
    return Part(scheme, (0, rows), (0, columns), bool(stored.shift) and scheme == "int4", tensors), bias


def _dense(checkpoint: Checkpoint, stored: _Stored, where: str) -> tuple[Tensor, Tensor | None]:
    weight = _joined(checkpoint, stored.weights, where)
    if weight.ndim != 2 or weight.shape[1] % GROUP_SIZE_INT4 or not weight.numel():
        raise CheckpointError(
            f"{where} has shape {tuple(weight.shape)}, expected inputs in a multiple of {GROUP_SIZE_INT4}."
        )
    if not stored.biases:
        return weight, None
    bias = _joined(checkpoint, stored.biases, where.replace(".weight", ".bias"))
    return weight, bias.to(weight.dtype)


def _read_codes(checkpoint: Checkpoint, stored: _Stored, weight: Tensor, where: str) -> dict[str, Tensor]:
    if not stored.subscales:
        scales = _group_scales(checkpoint, stored.scales, weight, GROUP_SIZE_INT4, where)
        return {"qweight": pack_nibbles(_int4_codes(weight, scales, where)), "wscales": scales.T.contiguous()}
    outer = [checkpoint[name] for name in stored.scales]
    if any(scale.numel() != 1 for scale in outer):
        raise CheckpointError(f"{where}: its first scale has {outer[0].numel()} values, expected one for the tensor.")
    heights = [checkpoint.shape(name)[0] for name in stored.weights]
    channel = torch.cat([scale.reshape(1).expand(n) for scale, n in zip(outer, heights, strict=True)]).to(weight.dtype)
    check_values(channel, FLOAT, f"{where}: its first scale")
    inner = _group_scales(checkpoint, stored.subscales, weight, GROUP_SIZE_NVFP4, where)
    micro = inner.to(torch.float8_e4m3fn)
    if not torch.equal(micro.to(inner.dtype), inner):
        raise CheckpointError(f"{where}: its second scales are no float8_e4m3 values. The run used another format.")
    units = weight.float() / channel.float()[:, None]
    units = units.view(*inner.shape, -1) / inner.float()[..., None]
    tensors = {"qweight": pack_nibbles(_e2m1_codes(units, where).view(weight.shape))}
    tensors["wscales"] = micro.view(torch.uint8).T.contiguous().view(torch.float8_e4m3fn)
    # one scale where there is one module, else one for each channel: nunchaku's choice
    return tensors | ({"wtscale": channel[:1].clone()} if len(outer) == 1 else {"wcscales": channel})


def _group_scales(checkpoint: Checkpoint, names: list[str], weight: Tensor, group_size: int, where: str) -> Tensor:
    """(N, K//group_size) of the weight's dtype."""
    scales = _joined(checkpoint, names, f"{where}: its scales")
    expected = (weight.shape[0], weight.shape[1] // group_size)
    if scales.numel() != expected[0] * expected[1]:
        raise CheckpointError(
            f"{where}: its scales have shape {tuple(scales.shape)}, expected one for each {group_size} inputs: "
            f"({expected[0]}, 1, {expected[1]}, 1)."
        )
    return scales.reshape(expected).to(weight.dtype)


def _int4_codes(weight: Tensor, scales: Tensor, where: str, zero_point: int = 0, low: int = -8) -> Tensor:
    units = weight.float().view(*scales.shape, -1) / scales.float()[..., None] + zero_point
    codes = units.round()
    _check_grid(units, codes, float(codes.min()) < low or float(codes.max()) > low + 15, where)
    return codes.to(torch.int8).view(weight.shape)


def _e2m1_codes(units: Tensor, where: str) -> Tensor:
    grid = torch.tensor(E2M1_VALUES)
    magnitude = units.abs()
    codes = torch.bucketize(magnitude, (grid[1:] + grid[:-1]) / 2)  # a tie goes to the smaller code
    _check_grid(magnitude, grid[codes], False, where)
    return torch.where((units < 0) & (codes > 0), codes + 8, codes).to(torch.uint8)


def _check_grid(units: Tensor, rounded: Tensor, outside: bool, where: str) -> None:
    off = float((units - rounded).abs().max())
    if outside or not off < OFF_GRID:
        raise CheckpointError(
            f"{where}: its values do not lie on the 4-bit grid of its scales (off by {off:.2f} steps). model.pt and "
            "scale.pt are not of one run."
        )


def _read_branch(checkpoint: Checkpoint, stored: _Stored, weight: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """(K, R) and (N, R); R = 0 without a branch."""
    rows, columns = weight.shape
    if not stored.branch:
        return weight.new_zeros(columns, 0), weight.new_zeros(rows, 0)
    down, up = (checkpoint[f"{stored.branch}/{half}.weight"] for half in ("a", "b"))
    if down.ndim != 2 or up.ndim != 2 or down.shape[1] != columns or tuple(up.shape) != (rows, down.shape[0]):
        raise CheckpointError(
            f"{where}: its low-rank branch has shapes {tuple(down.shape)} and {tuple(up.shape)}, expected (R, "
            f"{columns}) and ({rows}, R)."
        )
    for half in (down, up):
        check_values(half, FLOAT, f"{where}: its low-rank branch")
    return down.T, up.to(weight.dtype)


def _read_modulation(checkpoint: Checkpoint, stored: _Stored, where: str) -> tuple[Part, Tensor | None]:
    weight, bias = _dense(checkpoint, stored, where)
    if any(bool(checkpoint[name].any()) for name in stored.zeros):
        raise CheckpointError(f"{where}: has zero points, and a symmetric quantization was expected.")
    scales = _group_scales(checkpoint, stored.scales, weight, GROUP_SIZE["awq"], where)
    codes = _int4_codes(weight, scales, where, AWQ_ZERO_POINT, low=0)
    zeros = (-AWQ_ZERO_POINT * scales.float()).to(scales.dtype)
    tensors = {"qweight": pack_nibbles(codes), "wscales": scales.T.contiguous(), "wzeros": zeros.T.contiguous()}
    return Part("awq", (0, weight.shape[0]), (0, weight.shape[1]), False, tensors), bias
