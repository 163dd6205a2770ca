"""gemm_w4a8 by torch's product: blocks of columns come together; on a GPU, real layers. More: test_gemm_w4a8.py."""

import pytest
import torch
from compare import assert_close, assert_same
from problems import REAL, activations, branch, packed_codes, scales

from svdquant_pack.kernels import reference
from svdquant_pack.kernels.epilogue import Epilogue
from svdquant_pack.kernels.step import gemm_w4a8_by_torch as by_torch
from svdquant_pack.kernels.step.gemm_w4a8_by_torch import LEAST_TOKENS, gemm_w4a8_by_torch


def problem(M, N, K, R, *, dtype, device):
    smooth_factor, proj_down, proj_up = branch(N, K, R, dtype, device)
    quantized = reference.quantize_act_int8(activations(M, K, dtype, device), smooth_factor, proj_down)
    weight = reference.dequantize_int4(packed_codes(N, K, device), scales(N, K, dtype, device))
    return quantized, reference.requantize_int8(weight), proj_up, torch.randn(N, device=device).to(dtype)


@pytest.mark.parametrize("gelu_from", [None, 0, 56, 136])
def test_blocks_of_columns_are_the_whole(gelu_from, dtype, device, monkeypatch):
    """40 columns at a time: the GELU begins in front of, inside and behind a block."""
    arguments = problem(33, 136, 192, 16, dtype=dtype, device=device)
    epilogue = Epilogue(gelu_from=gelu_from)
    whole = gemm_w4a8_by_torch(*arguments, epilogue)
    monkeypatch.setattr(by_torch, "MOST_SUMS", 33 * 45)
    assert_same(gemm_w4a8_by_torch(*arguments, epilogue), whole)


@pytest.mark.gpu
@pytest.mark.parametrize(("M", "N", "K"), [shape for shape in REAL if shape[0] >= LEAST_TOKENS])
@pytest.mark.parametrize("R", [0, 32])
def test_real_layers(M, N, K, R, dtype, device):
    arguments = problem(M, N, K, R, dtype=dtype, device=device)
    assert_close(gemm_w4a8_by_torch(*arguments), reference.gemm_w4a8(*arguments), op="gemm_w4a8")
