"""tiles: whole blocks of k for every K, no new kernel for a new image size, batch or rank, every tile computed once."""

import pytest

from svdquant_pack.kernels.gpus import CPU, GENERATIONS, OTHER
from svdquant_pack.kernels.tiles import (
    Projection,
    choose_projection,
    fuses_rank,
    gemm_tile,
    gemv_tile,
    native_int4_tile,
    part_position,
    part_rounds,
    quantizer_tile,
    shares_tile,
    unpack_tile,
)

GPUS = (*GENERATIONS, CPU, OTHER)
A_GPU = pytest.mark.parametrize("gpu", GPUS, ids=lambda row: row.name)
WIDTHS = (64, 192, 256, 768, 1024, 1152, 3072, 3456, 4608, 9216, 12288, 15360)


@pytest.mark.parametrize("K", WIDTHS)
def test_blocks_divide_k(K):
    for op in ("requantize", "dequantize"):
        assert K % unpack_tile(op, 3072, K)["BLOCK_K"] == 0
    assert all(K % gemv_tile(rows, K)["BLOCK_K"] == 0 for rows in (1, 2, 4))
    for R in (0, 16, 128):
        assert K % quantizer_tile(K, R)["BLOCK_K"] == 0
        for M in (1, 512, 4608):
            shares = shares_tile(M, K, R)
            assert K % (shares["BLOCK_K"] * shares["SHARES"]) == 0
    for gpu in GPUS:
        assert K % gemm_tile("gemm_w4a8", 4608, K, gpu)["BLOCK_K"] == 0


@A_GPU
@pytest.mark.parametrize("op", ["gemm_w4a8", "gemm_w4a4", "gemm_nvfp4"])
def test_a_new_image_size_needs_no_new_kernel(gpu, op):
    tiles = {str(sorted(gemm_tile(op, M, 3072, gpu).items())) for M in range(1025, 16384, 97)}
    assert len(tiles) == 1


@A_GPU
def test_large_ranks_leave_the_quantizer(gpu):
    assert not fuses_rank(0, gpu)
    assert not fuses_rank(1024, gpu)
    assert choose_projection(12288, 1024, gpu) in (Projection.APART, Projection.SHARED)


@A_GPU
def test_who_projects_down(gpu):
    assert choose_projection(12288, 0, gpu) is Projection.NONE
    fused = Projection.FUSED if gpu.max_fused_rank >= 32 else Projection.APART
    assert choose_projection(192, 32, gpu) is fused
    assert choose_projection(12288, 32, gpu) is (fused if gpu.shares_from_k is None else Projection.SHARED)


@pytest.mark.parametrize("N", [64, 192, 768, 1152, 3456, 9216, 12288])
@pytest.mark.parametrize("groups", [1, 4, 18, 48])
def test_native_tiles_are_whole(N, groups):
    tile = native_int4_tile(4608, N, groups)
    assert N % tile["BLOCK_N"] == 0
    assert groups % tile["STAGE_GROUPS"] == 0


@pytest.mark.parametrize("processors", [1, 7, 66, 132])
@pytest.mark.parametrize("swizzle_m", [1, 4])
def test_hopper_computes_every_part_once(processors, swizzle_m):
    for tiles_m in (1, 2, 4, 5, 36, 37):
        for tiles_n in range(1, 49):
            programs = min(processors, 2 * tiles_m * tiles_n)
            whole, single = part_rounds(tiles_m * tiles_n, programs)
            parts, most = [], 0
            for program in range(programs):
                before = len(parts)
                for item in range(program, whole, programs):
                    tile_m, part_n = part_position(item, whole, 2, tiles_m, tiles_n, swizzle_m)
                    parts += [(tile_m, part_n), (tile_m, part_n + 1)]
                for item in range(program, single, programs):
                    parts.append(part_position(item, whole, 1, tiles_m, tiles_n, swizzle_m))
                most = max(most, len(parts) - before)
            assert sorted(parts) == [(row, column) for row in range(tiles_m) for column in range(2 * tiles_n)]
            assert most == -(-2 * tiles_m * tiles_n // programs), "an even spread asks for less"
