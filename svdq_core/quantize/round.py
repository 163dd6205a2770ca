"""Step 3: group scales that minimize the squared error, and the codes.

Scales are rounded to their stored dtype before any code is chosen, so what is measured here is what the file holds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.format import E4M3_MAX, GROUP_SIZE_AWQ, UINT4_MAX
from ...kernels.gpus import why_no_triton
from ...kernels.ladder import descend
from .grid import Grid

# absmax / high times these. Gaussian weights, groups of 64, int4: error 0.1077 at 1.0 alone, 0.0998 with the sweep.
SCALE_RATIOS = tuple(1.0 - 0.025 * step for step in range(13))
# Steps of an e4m3 number around absmax / 6: from 0.7 of it to past 1.5 of it, where the largest value takes code 4.
E4M3_STEPS = (0, *range(-4, 0), *range(1, 7))
# Chunks of rows keep the temporaries of the sweep to a fraction of a large layer.
CHUNK_ELEMENTS = 1 << 24
# Rows of a weight that are worked on at once elsewhere, for the same reason: Krea 2's gate and up have 32768 together,
# so that each copy of them takes 0.8 GB. More rows are no faster.
ROWS = 8192
AWQ_RATIOS = tuple(1.0 - 0.04 * step for step in range(6))
AWQ_REFITS = 3


@dataclass(frozen=True)
class GroupScales:
    """Scales as they are stored.

    Args:
        groups: (N, G) 16-bit float or float8_e4m3fn.
        tensor: (1,) 16-bit float that multiplies all of them, or None.
    """

    groups: Tensor
    tensor: Tensor | None = None

    def effective(self) -> Tensor:
        """(N, G) float32, tensor scale included."""
        scales = self.groups.float()
        return scales if self.tensor is None else scales * self.tensor.float()


def fit_scales(
    residual: Tensor, grid: Grid, dtype: torch.dtype, importance: Tensor | None = None, sweep: bool = True
) -> GroupScales:
    """The scale of each group with the least weighted squared rounding error.

    A group of zeros gets scale 1 (codes 0).

    Args:
        residual: (N, K) float32.
        dtype: of int scales and of the tensor scale, bfloat16 or float16; scales of whole rows are float32.
        importance: (K,) float32 weight of each column's error, or None for all ones.
        sweep: False takes absmax / high only.
    """
    if not _takes_kernel(residual, grid):
        return fit_scales_in_torch(residual, grid, dtype, importance, sweep)
    tensor = _tensor_scale(residual, grid, dtype)
    return GroupScales(
        _fastest_search(residual, grid, dtype, importance=importance, sweep=sweep, tensor=tensor), tensor
    )


def fit_scales_in_torch(
    residual: Tensor, grid: Grid, dtype: torch.dtype, importance: Tensor | None = None, sweep: bool = True
) -> GroupScales:
    """fit_scales without a kernel."""
    if grid.group_size is None:
        dtype = torch.float32
    tensor = _tensor_scale(residual, grid, dtype)
    return GroupScales(_search(residual, grid, dtype, importance=importance, sweep=sweep, tensor=tensor), tensor)


def round_by_absmax(residual: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
    """What a weight rounded with absmax scales stands for: (N, K) -> (N, K) float32."""
    if not _takes_kernel(residual, grid):
        scales = fit_scales_in_torch(residual, grid, dtype, sweep=False)
        return units_to_values(round_to_units(residual, scales, grid), scales, grid)
    values = torch.empty_like(residual)
    _fastest_search(
        residual, grid, dtype, importance=None, sweep=False, tensor=_tensor_scale(residual, grid, dtype), values=values
    )
    return values


def _takes_kernel(residual: Tensor, grid: Grid) -> bool:
    fits = grid.group_size in (16, 64) and grid.low == -grid.high and residual.shape[1] % 64 == 0
    return fits and grid.kind in ("int", "e2m1") and why_no_triton(residual.device) is None


def _fastest_search(
    residual: Tensor,
    grid: Grid,
    dtype: torch.dtype,
    *,
    importance: Tensor | None,
    sweep: bool,
    tensor: Tensor | None,
    values: Tensor | None = None,
) -> Tensor:
    """The scales, by a kernel where one works; `values` is overwritten with the rounded weight."""

    def kernel() -> Tensor:
        from ...kernels.quantizer.quantize_scales import fit_group_scales

        count = len(SCALE_RATIOS if tensor is None else E4M3_STEPS) if sweep else 1
        assert grid.group_size is not None
        return fit_group_scales(
            residual.contiguous(),
            grid.high,
            group_size=grid.group_size,
            count=count,
            dtype=dtype,
            importance=importance,
            tensor=tensor,
            values=values,
        )

    def search() -> Tensor:
        found = GroupScales(_search(residual, grid, dtype, importance=importance, sweep=sweep, tensor=tensor), tensor)
        if values is not None:
            values.copy_(units_to_values(round_to_units(residual, found, grid), found, grid))
        return found.groups

    return descend(residual.device, [("the search for scales in Triton", kernel), ("the same in torch", search)])


def _tensor_scale(residual: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor | None:
    """(1,) factor of all e4m3 scales; None for whole numbers."""
    if grid.kind != "e2m1":
        return None
    tensor = (residual.abs().amax() / (grid.high * E4M3_MAX)).to(dtype)[None]
    return torch.where(tensor > 0, tensor, torch.ones_like(tensor))


def _search(
    residual: Tensor, grid: Grid, dtype: torch.dtype, *, importance: Tensor | None, sweep: bool, tensor: Tensor | None
) -> Tensor:
    weights = None if importance is None else grid.groups(importance.float())
    rows = max(1, CHUNK_ELEMENTS // residual.shape[1])
    chunks = []
    for chunk in residual.split(rows):
        groups = grid.groups(chunk)
        base = groups.abs().amax(dim=-1) / grid.high
        if tensor is None:
            candidates = (_nonzero((base * ratio).to(dtype)) for ratio in (SCALE_RATIOS if sweep else (1.0,)))
            chunks.append(_best_scale(groups, candidates, 1.0, grid, weights))
        else:
            candidates = _e4m3_neighbours(base / tensor.float(), E4M3_STEPS if sweep else (0,))
            chunks.append(_best_scale(groups, candidates, tensor.float(), grid, weights))
    return torch.cat(chunks)


def _nonzero(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, scales, torch.ones_like(scales))


def _e4m3_neighbours(scales: Tensor, steps: tuple[int, ...]):
    codes = scales.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8).int()
    for step in steps:
        # 0x7F is NaN; 0 would throw a group away that is small but not zero.
        yield (codes + step).clamp(1, 0x7E).to(torch.uint8).view(torch.float8_e4m3fn)


def _best_scale(groups: Tensor, candidates, factor: Tensor | float, grid: Grid, weights: Tensor | None) -> Tensor:
    best, best_error = None, None
    for scales in candidates:
        effective = (scales.float() * factor)[..., None]
        error = grid.snap(groups / effective).mul_(effective).sub_(groups).square_()
        error = (error if weights is None else error.mul_(weights)).sum(dim=-1)
        if best is None or best_error is None:
            best, best_error = scales, error
            continue
        better = error < best_error
        # float8 has no `where`; its bytes have
        view = torch.uint8 if scales.dtype == torch.float8_e4m3fn else scales.dtype
        best = torch.where(better, scales.view(view), best.view(view)).view(scales.dtype)
        best_error = torch.where(better, error, best_error)
    assert best is not None
    return best


def round_to_units(residual: Tensor, scales: GroupScales, grid: Grid) -> Tensor:
    """The nearest unit of each value: (N, K) float32 -> (N, K) float32 units."""
    chunks = zip(residual.split(ROWS), scales.effective().split(ROWS), strict=True)
    units = [grid.snap(grid.groups(rows) / effective[..., None]).flatten(-2) for rows, effective in chunks]
    return units[0] if len(units) == 1 else torch.cat(units)


def units_to_values(units: Tensor, scales: GroupScales, grid: Grid) -> Tensor:
    """Units times their scales: (N, K) -> (N, K) float32."""
    return (grid.groups(units) * scales.effective()[..., None]).flatten(-2)


def round_awq(
    weight: Tensor, dtype: torch.dtype, group: int = GROUP_SIZE_AWQ, importance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric 4-bit codes of a weight that runs with 16-bit activations: weight ~ code * scale + zero.

    Starts from a few shrunken min-max ranges and refines each by least squares on its own codes.

    Args:
        weight: (N, K) float32.
        dtype: of scales and zeros.
        group: consecutive inputs that share them; divides K.
        importance: (K,) float32 weight of each column's error, or None for all ones.

    Returns:
        codes (N, K) uint8 0...15, scales (N, K//group), zeros (N, K//group).
    """
    shares = None if importance is None else importance.unflatten(0, (-1, group))
    rows = max(1, CHUNK_ELEMENTS // weight.shape[1])
    results = [_round_awq_rows(chunk.unflatten(-1, (-1, group)), dtype, shares) for chunk in weight.split(rows)]
    codes, scales, zeros = (torch.cat(parts) for parts in zip(*results, strict=True))
    return codes, scales, zeros


def _round_awq_rows(groups: Tensor, dtype: torch.dtype, shares: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low, dtype=dtype), torch.zeros_like(low, dtype=dtype)
    for ratio in AWQ_RATIOS:
        scale, zero = (high - low) * (ratio / UINT4_MAX), low + (high - low) * (0.5 - 0.5 * ratio)
        for _ in range(AWQ_REFITS):
            scale, zero = _nonzero(scale.to(dtype)), zero.to(dtype)
            codes = _awq_codes(groups, scale, zero)
            error = torch.addcmul(zero.float()[..., None], codes, scale.float()[..., None]).sub_(groups)
            error = error.square_() if shares is None else error.square_().mul_(shares)
            error = error.sum(dim=-1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
            scale, zero = _fit_line(codes, groups, shares)
    return _awq_codes(groups, best_scale, best_zero).flatten(-2).to(torch.uint8), best_scale, best_zero


def _awq_codes(groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return ((groups - zero.float()[..., None]) / scale.float()[..., None]).round_().clamp_(0, UINT4_MAX)


def _fit_line(codes: Tensor, groups: Tensor, shares: Tensor | None) -> tuple[Tensor, Tensor]:
    """Least squares of groups on codes, in each group, weighted: scale and zero (N, G) float32."""
    code_mean, mean = _mean(codes, shares), _mean(groups, shares)
    centered = codes - code_mean
    weighted = centered if shares is None else centered * shares
    variance = (centered * weighted).sum(dim=-1)
    scale = (weighted * (groups - mean)).sum(dim=-1) / variance.clamp(min=1e-12)
    return scale, mean[..., 0] - scale * code_mean[..., 0]


def _mean(values: Tensor, shares: Tensor | None) -> Tensor:
    """Over each group, kept as a dimension."""
    if shares is None:
        return values.mean(dim=-1, keepdim=True)
    return (values * shares).sum(dim=-1, keepdim=True) / shares.sum(dim=-1, keepdim=True)
