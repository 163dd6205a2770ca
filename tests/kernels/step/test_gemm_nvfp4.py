"""gemm_nvfp4 on native FP4 tensor cores; elsewhere test_linear covers the layers, test_cross_compile the kernel."""

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from problems import branch, e4m3_scales, packed_codes

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.gpus import generation
from svdquant_pack.kernels.tiles import NVFP4_ROWS


@pytest.mark.gpu
@pytest.mark.parametrize(("M", "N", "K"), [(1, 128, 128), (63, 1152, 1152), (4625, 3072, 3072)])
@pytest.mark.parametrize("R", [0, 32])
def test_matches_reference(M, N, K, R, dtype, device):
    if not generation(device).fp4:
        pytest.skip("needs a GPU with FP4 tensor cores")
    from svdquant_pack.kernels.step.gemm_nvfp4 import gemm_nvfp4

    _, _, proj_up = branch(N, K, R, dtype, device)
    x_down, bias = torch.randn(M, R, device=device).to(dtype), torch.randn(N, device=device).to(dtype)
    wcscales = torch.rand(N, device=device) + 0.5
    qx, ascales = packed_codes(M, K, device), e4m3_scales(M, K, device)
    weight = packed_codes(N, K, device), e4m3_scales(N, K, device)
    extra = {"x_down": x_down, "proj_up": proj_up, "bias": bias, "wcscales": wcscales}
    padding = -M % NVFP4_ROWS
    padded = F.pad(qx, (0, 0, 0, padding)), F.pad(ascales.view(torch.uint8), (0, padding), value=0x7F)  # nan
    assert_close(
        gemm_nvfp4(*padded, *weight, **extra), reference.gemm_nvfp4(qx, ascales, *weight, **extra), op="gemm_nvfp4"
    )


def test_rows_that_are_no_whole_tiles_are_refused():
    pytest.importorskip("triton")
    from svdquant_pack.kernels.step.gemm_nvfp4 import gemm_nvfp4

    cpu = torch.device("cpu")
    operands = (
        packed_codes(63, 128, cpu),
        e4m3_scales(63, 128, cpu),
        packed_codes(128, 128, cpu),
        e4m3_scales(128, 128, cpu),
    )
    with pytest.raises(ValueError, match="63 rows are not a whole number of tiles of 128"):
        gemm_nvfp4(*operands, x_down=torch.zeros(63, 0), proj_up=torch.zeros(128, 0))
