"""Which tile each kernel uses on each GPU generation, in one place, with the evidence beside each row.

Tables are fixed, not tuned at run time: a new image size, batch or LoRA rank never waits for a search, and Triton's own
cache on disk holds the compiled kernels. Rows are keyed by the number of tokens M up to which they serve.
"compiled" means: cross-compiled for that GPU without a register spill and within its shared memory, not timed.
"""

import torch

from .devices import generation

# Exact w4a4 runs on int8 tensor cores where those are at least four times as fast as 16-bit ones with float32 sums; on the
# others the scaling after each group of 64 k costs more than 16-bit products. H200, 3072 -> 12288, M = 4608: int8 0.99 ms
# at best, 16-bit 0.54 ms with both sides dequantized first.
INT8_W4A4_GENERATIONS = ("sm_80", "sm_86", "sm_89", "sm_120")

MAX_FUSED_RANK = 128  # of the down projection inside a quantizer; its sums stay in registers
ANY = 1 << 62


def _power_of_2(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


def _divisor(K: int, largest: int) -> int:
    """The largest power of two up to `largest` that divides K: a block of k that needs no mask."""
    return min(K & -K, largest)


def quantizer_tile(M: int, K: int, R: int, device: torch.device) -> dict[str, int]:
    """Tile of the activation quantizers: BLOCK_M tokens in steps of BLOCK_K."""
    return {
        "BLOCK_M": 16,
        "BLOCK_K": _divisor(K, 128),
        "BLOCK_R": max(16, _power_of_2(R)),
        "num_warps": 4,
        "num_stages": 3,
    }


def unpack_tile(op: str, N: int, K: int) -> dict[str, int]:
    """Tile of what reads a 4-bit weight once: BLOCK_N channels in steps of BLOCK_K."""
    rows, columns, warps = {"requantize": (8, 512, 4), "dequantize": (16, 256, 4), "gemv": (16, 256, 4)}[op]
    return {"BLOCK_N": rows, "BLOCK_K": _divisor(K, columns), "num_warps": warps}


def _tile(m: int, n: int, k: int, warps: int, stages: int, **more: int) -> dict[str, int]:
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages, **more}


# generation -> rows of (largest M, tile)
GEMM_W4A8_TILES = {
    "default": ((ANY, _tile(128, 128, 64, 8, 3)),),
    "cpu": ((ANY, _tile(32, 32, 64, 4, 1)),),
}
GEMM_W4A4_TILES = {
    "default": ((ANY, _tile(128, 128, 64, 8, 3)),),
    "cpu": ((ANY, _tile(32, 32, 64, 4, 1)),),
}
GEMM_NVFP4_TILES = {
    "default": ((ANY, _tile(128, 128, 128, 8, 3)),),
}
_GEMM_TILES = {"gemm_w4a8": GEMM_W4A8_TILES, "gemm_w4a4": GEMM_W4A4_TILES, "gemm_nvfp4": GEMM_NVFP4_TILES}


def gemm_tile(op: str, M: int, N: int, K: int, device: torch.device) -> dict[str, int]:
    """Tile of a GEMM kernel."""
    table = _GEMM_TILES[op]
    rows = table.get(generation(device), table["default"])
    tile = next(tile for largest, tile in rows if largest >= M)
    tile = {"BLOCK_R": 16 if M < 64 else 32, "SWIZZLE_M": 8, **tile}
    if op == "gemm_w4a4":
        del tile["BLOCK_K"]  # its block is the scale group
    else:
        tile["BLOCK_K"] = _divisor(K, tile["BLOCK_K"])
    return tile
