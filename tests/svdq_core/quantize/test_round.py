"""Scales: the sweep beats absmax by what theory says, codes are what the file can hold, dead groups are safe."""

import pytest
import torch

from svdquant_pack.kernels.packing import pack_nibbles
from svdquant_pack.kernels.reference import dequantize_awq
from svdquant_pack.svdq_core.quantize.grid import INT4, NVFP4
from svdquant_pack.svdq_core.quantize.round import fit_scales, round_awq, round_to_units, units_to_values

GRIDS = {"int4": INT4, "nvfp4": NVFP4}


def _gaussian(rows=256, columns=512):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def _round(weight, grid, **settings):
    scales = fit_scales(weight, grid, torch.bfloat16, **settings)
    return units_to_values(round_to_units(weight, scales, grid), scales, grid)


# Gaussian weights, absmax scales and swept scales: measured
@pytest.mark.parametrize(("name", "plain", "swept"), [("int4", 0.108, 0.100), ("nvfp4", 0.095, 0.0815)])
def test_error_on_gaussian_weights(name, plain, swept):
    weight, grid = _gaussian(), GRIDS[name]
    for sweep, expected in ((False, plain), (True, swept)):
        error = float((_round(weight, grid, sweep=sweep) - weight).norm() / weight.norm())
        assert error == pytest.approx(expected, abs=0.001)


def test_importance_moves_the_error_to_cheap_columns():
    weight = _gaussian()
    importance = torch.ones(512)
    importance[::4] = 100.0
    lost = (_round(weight, INT4, importance=importance) - weight).square().sum(dim=0)
    plain = (_round(weight, INT4) - weight).square().sum(dim=0)
    assert lost[::4].sum() < 0.95 * plain[::4].sum()
    assert (lost * importance).sum() < (plain * importance).sum()


@pytest.mark.parametrize("name", GRIDS)
def test_codes_stay_in_range_and_stored_scales_are_used(name):
    weight, grid = _gaussian(128, 256) * 3e-3, GRIDS[name]
    scales = fit_scales(weight, grid, torch.bfloat16)
    units = round_to_units(weight, scales, grid)
    assert units.abs().max() == grid.high
    assert scales.groups.dtype == (torch.float8_e4m3fn if name == "nvfp4" else torch.bfloat16)
    assert (scales.tensor is None) == (name == "int4")


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dead_groups_and_tiny_weights_are_safe(name, dtype):
    weight, grid = _gaussian(128, 256), GRIDS[name]
    weight[3] = 0
    weight[:, 64:128] = 0
    weight[5, :64] = 1e-12
    scales = fit_scales(weight, grid, dtype)
    units = round_to_units(weight, scales, grid)
    values = units_to_values(units, scales, grid)
    assert torch.isfinite(values).all()
    assert torch.equal(values[3], torch.zeros(256))
    assert torch.equal(values[:, 64:128], torch.zeros(128, 64))
    assert (values[5, :64] - weight[5, :64]).abs().max() <= 1e-12
    zeros = fit_scales(torch.zeros(128, 256), grid, dtype)
    assert torch.equal(round_to_units(torch.zeros(128, 256), zeros, grid), torch.zeros(128, 256))


def test_chunks_change_nothing(monkeypatch):
    from svdquant_pack.svdq_core.quantize import round as round_module

    weight = _gaussian(128, 256)
    whole = fit_scales(weight, NVFP4, torch.bfloat16), round_awq(weight, torch.bfloat16)
    monkeypatch.setattr(round_module, "CHUNK_ELEMENTS", 256 * 40)
    parts = fit_scales(weight, NVFP4, torch.bfloat16), round_awq(weight, torch.bfloat16)
    assert torch.equal(whole[0].effective(), parts[0].effective())
    assert all(torch.equal(a, b) for a, b in zip(whole[1], parts[1], strict=True))


def test_awq_beats_min_max():
    weight = _gaussian() + 0.3
    codes, scales, zeros = round_awq(weight, torch.bfloat16)
    restored = dequantize_awq(pack_nibbles(codes), scales.T.contiguous(), zeros.T.contiguous())
    groups = weight.view(256, -1, 64)
    low, step = groups.amin(-1, keepdim=True), (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    min_max = (((groups - low) / step).round() * step + low).view(256, 512)
    assert (restored - weight).norm() < 0.95 * (min_max - weight).norm()


def test_awq_constant_group_is_exact():
    weight = torch.zeros(8, 128)
    weight[1] = 0.5
    codes, scales, zeros = round_awq(weight, torch.bfloat16)
    restored = dequantize_awq(pack_nibbles(codes), scales.T.contiguous(), zeros.T.contiguous())
    assert torch.equal(restored, weight)


def test_scales_in_torch_ask_no_kernel(monkeypatch):
    from svdquant_pack.svdq_core.quantize import round as round_module

    def refuse(*_):
        raise AssertionError("the ladder begins with a kernel")

    monkeypatch.setattr(round_module, "descend", refuse)
    residual = torch.randn(8, 128)
    round_module.fit_scales_in_torch(residual, INT4, torch.bfloat16)
    round_module.round_by_absmax(residual, INT4, torch.bfloat16)
