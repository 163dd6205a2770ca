"""Grids agree with the runtime's own codes."""

import pytest
import torch

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.format import E2M1_VALUES
from svdquant_pack.kernels.packing import unpack_int4, unpack_uint4
from svdquant_pack.svdq_core.quantize.grid import (
    INT4,
    NF4,
    NF4_VALUES,
    NVFP4,
    UINT4,
    quantize_activations,
    runtime_arithmetic,
)


def test_e2m1_snaps_as_the_encoder():
    units = torch.linspace(-7, 7, 4001)
    expected = reference.decode_e2m1(reference.encode_e2m1(units))
    assert torch.equal(NVFP4.snap(units), expected)
    assert set(NVFP4.snap(units).abs().tolist()) == set(E2M1_VALUES)


def test_int_grids_saturate():
    units = torch.tensor([-9.0, -0.5, 0.5, 1.5, 6.6, 22.0])
    assert INT4.snap(units).tolist() == [-7, 0, 0, 2, 7, 7]
    assert UINT4.snap(units).tolist() == [0, 0, 0, 2, 7, 15]


def test_nf4_snaps_to_the_nearest_value():
    units = torch.linspace(-1.2, 1.2, 999)
    values = torch.tensor(NF4_VALUES)
    nearest = values[(units[:, None] - values).abs().argmin(dim=1)]
    assert torch.equal(NF4.snap(units), nearest)


def _runtime_values(x, precision, activations, act_unsigned):
    """Dequantized activations from the reference quantizers."""
    ones, no_branch = torch.ones(x.shape[1]), torch.zeros(x.shape[1], 0)
    if activations == "w4a8":
        codes, scales, _ = reference.quantize_act_int8(x, ones, no_branch, act_unsigned)
        return codes.float() * scales[:, None]
    if precision == "nvfp4":
        codes, scales, _ = reference.quantize_act_nvfp4(x, ones, no_branch)
        return reference.decode_e2m1(unpack_uint4(codes)) * scales.float().T.repeat_interleave(16, dim=1)
    codes, scales, _ = reference.quantize_act_int4(x, ones, no_branch, act_unsigned)
    codes = unpack_uint4(codes) if act_unsigned else unpack_int4(codes)
    return codes.float() * scales.float().T.repeat_interleave(64, dim=1)


@pytest.mark.parametrize(
    ("precision", "activations", "act_unsigned"),
    [("int4", "w4a4", False), ("int4", "w4a4", True), ("int4", "w4a8", False), ("nvfp4", "w4a4", False)],
)
def test_activations_equal_the_runtime(precision, activations, act_unsigned):
    x = torch.randn(33, 256, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    x[5] = 0
    x[7, 100] = 9000.0
    if act_unsigned:
        x = torch.nn.functional.gelu(x, approximate="tanh")
    grid = runtime_arithmetic(precision, activations, act_unsigned).activations
    shifted = (x + 0.171875 if act_unsigned else x).float()
    found = quantize_activations(shifted, grid, torch.bfloat16)
    assert torch.equal(found, _runtime_values(x, precision, activations, act_unsigned))
