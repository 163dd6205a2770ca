"""gemm_w4a4 on int8 tensor cores: the reference within the order of float32 sums, extreme codes included."""

import pytest
import torch
from compare import assert_close, assert_same
from problems import REAL, SMALL, branch, packed_codes, scales

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.packing import unpack_int4, unpack_uint4
from svdquant_pack.kernels.step.gemm_w4a4 import gemm_w4a4
from svdquant_pack.kernels.step.unpack_weight import expand_codes

SHAPES = [*SMALL, *(pytest.param(*shape, marks=pytest.mark.gpu) for shape in REAL[:4])]


def one_a_byte(qx, act_unsigned):
    return unpack_uint4(qx).view(torch.int8) if act_unsigned else unpack_int4(qx)


@pytest.mark.parametrize(("M", "N", "K"), SHAPES)
@pytest.mark.parametrize("R", [0, 48])
@pytest.mark.parametrize("act_unsigned", [False, True])
def test_matches_reference(M, N, K, R, act_unsigned, dtype, device):
    qx, qweight = packed_codes(M, K, device), packed_codes(N, K, device)
    ascales, wscales = scales(M, K, dtype, device), scales(N, K, dtype, device)
    _, _, proj_up = branch(N, K, R, dtype, device)
    x_down, bias = torch.randn(M, R, device=device).to(dtype), torch.randn(N, device=device).to(dtype)
    actual = gemm_w4a4(
        one_a_byte(qx, act_unsigned), ascales, expand_codes(qweight), wscales, x_down=x_down, proj_up=proj_up, bias=bias
    )
    wanted = reference.gemm_w4a4(
        qx, ascales, qweight, wscales, x_down=x_down, proj_up=proj_up, bias=bias, act_unsigned=act_unsigned
    )
    assert_close(actual, wanted, op="gemm_w4a4")


@pytest.mark.parametrize(("byte", "act_unsigned", "value"), [(-128 + 8, False, 64.0), (-1, True, -120.0)])
def test_extreme_codes(byte, act_unsigned, value, device):
    """All codes -8, or all 15 against -8: the largest sums a group can have, exact."""
    qx = torch.full((16, 32), byte, dtype=torch.int8, device=device)
    qweight = torch.full((16, 32), -128 + 8, dtype=torch.int8, device=device)
    ones = torch.ones(1, 16, dtype=torch.float16, device=device)
    none = torch.empty(16, 0, dtype=torch.float16, device=device)
    out = gemm_w4a4(one_a_byte(qx, act_unsigned), ones, expand_codes(qweight), ones, x_down=none, proj_up=none)
    assert_same(out, torch.full((16, 16), 64 * value, dtype=torch.float16, device=device))
