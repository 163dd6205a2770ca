"""gemm_nvfp4 on native FP4 tensor cores; elsewhere test_linear covers the layers, test_cross_compile the kernel."""

import pytest
import torch
from compare import assert_close
from problems import branch, e4m3_scales, packed_codes

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.gpus import generation


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
    arguments = (
        packed_codes(M, K, device),
        e4m3_scales(M, K, device),
        packed_codes(N, K, device),
        e4m3_scales(N, K, device),
    )
    extra = {"x_down": x_down, "proj_up": proj_up, "bias": bias, "wcscales": wcscales}
    assert_close(gemm_nvfp4(*arguments, **extra), reference.gemm_nvfp4(*arguments, **extra), op="gemm_nvfp4")
