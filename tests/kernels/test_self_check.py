"""The self-check runs the tiles and rings that layers run, and sees a kernel that is wrong in one of them."""

import pytest
import torch
from problems import REAL

from svdquant_pack.kernels import reference, self_check
from svdquant_pack.kernels.tiles import native_int4_tile

CPU = torch.device("cpu")
FLUX = [(4608, 3072, 3072), (512, 9216, 3072), (4608, 3072, 12288), (4608, 21504, 3072), (1, 3072, 3072)]


@pytest.fixture
def native(monkeypatch):
    """The kernel played by the reference; what it ran as (M, N, K), and whether a tile of N is to be wrong."""
    pytest.importorskip("triton.experimental.gluon.language.nvidia.ampere")
    from svdquant_pack.kernels.step import gemm_w4a4_native as file

    ran, wrong = [], []

    def play(qx, ascales, qweight, wscales, **others):
        (M, half_k), N = qx.shape, qweight.shape[0]
        ran.append((M, N, 2 * half_k, others["x_down"].dtype, others["act_unsigned"]))
        out = reference.gemm_w4a4(qx, ascales, qweight, wscales, **others)
        return out * 1.1 if native_int4_tile(M, N, half_k // 32)["BLOCK_N"] in wrong else out

    monkeypatch.setattr(file, "gemm_w4a4_native", play)
    self_check.require_int4.cache_clear()
    yield ran, wrong
    self_check.require_int4.cache_clear()


@pytest.mark.parametrize(("M", "N", "K"), [*FLUX, *REAL], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("act_unsigned", [False, True])
def test_it_runs_the_layers_tile(M, N, K, dtype, act_unsigned, native):
    layers = native_int4_tile(M, N, K // 64)
    self_check.require_int4(CPU, dtype, layers["BLOCK_N"], act_unsigned)
    ((m, n, k, of_dtype, unsigned),) = native[0]
    tile = native_int4_tile(m, n, k // 64)
    assert tile == layers
    assert k // 64 // tile["STAGE_GROUPS"] > tile["STAGES"], "the ring has to go round"
    assert (of_dtype, unsigned) == (dtype, act_unsigned)


@pytest.mark.parametrize("wrong", [64, 128])
def test_a_tile_that_computes_wrong_is_seen_in_that_tile(wrong, native):
    native[1].append(wrong)
    self_check.require_int4(CPU, torch.bfloat16, 192 - wrong, False)
    with pytest.raises(RuntimeError, match="gave wrong results"):
        self_check.require_int4(CPU, torch.bfloat16, wrong, False)
