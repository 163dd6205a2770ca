"""Which tile each kernel uses on each GPU generation, in one place, with the evidence beside each row.

Tables are fixed, not tuned at run time: a new image size, batch or LoRA rank never waits for a search, and Triton's own
cache on disk holds the compiled kernels. Tables are keyed by Generation.tiles of gpus.py, or "default"; rows by the
number of tokens M up to which they serve. A row without times was only compiled, without a register spill and within
the shared memory of every generation that takes it.
"""

from enum import Enum
from functools import cache

from .gpus import Generation

ANY = 1 << 62


class Projection(Enum):
    """Who computes the low-rank down projection of an int8 quantizer's tokens."""

    NONE = "there is none: rank 0"
    FUSED = "the quantizer itself, while it looks for the largest value"
    SHARED = "project_act.py, in shares of k, which looks for the largest value as well"
    APART = "a matrix product of torch's"


@cache
def choose_projection(K: int, R: int, gpu: Generation) -> Projection:
    """The down projection of rank R for tokens of width K on a generation."""
    if R == 0:
        return Projection.NONE
    if gpu.shares_from_k is not None and gpu.shares_from_k <= K:
        return Projection.SHARED
    return Projection.FUSED if fuses_rank(R, gpu) else Projection.APART


def fuses_rank(R: int, gpu: Generation) -> bool:
    """Whether a quantizer of groups computes a down projection of rank R itself."""
    return 0 < R <= gpu.max_fused_rank


MANY_ROWS = 2048  # from which project_act.py takes fewer shares


@cache
def shares_tile(M: int, K: int, R: int) -> dict[str, int]:
    """Tile of project_act.py: SHARES programs for BLOCK_M tokens, each with steps of BLOCK_K.

    OVERLAP: whether the quantizer may begin meanwhile, where launches can overlap.
    """
    # H200, rank 32, both passes with the weight, 4, 6, 8 and 12 shares: M = 4608, 3072 -> 12288 0.0415, 0.0402, 0.0431
    # and 0.0439 ms, 12288 -> 3072 0.112, 0.105, 0.113 and 0.107; M = 4096, 4608 -> 1152 0.0353, 0.0327, 0.0320 and
    # 0.0353. M = 512, 8, 12, 16 and 24: 3072 -> 9216 0.0226, 0.0222, 0.0214 and 0.0233; 12288 -> 3072 0.0530, 0.0466,
    # 0.0441 and 0.0407.
    # H200, M = 4608, R = 32, K = 12288, this kernel alone, 4 shares: 64 x 64 0.0442 ms, 64 x 128 with 3 stages 0.0573,
    # 128 x 64 with 8 warps 0.0582, 64 x 32 0.0866; 5 or 6 stages change nothing.
    block_k = _divisor(K, 64)
    # Few tokens are not worth another launch's wait: with the next kernel beginning early (OVERLAP) and without, 4608:
    # 3072 -> 9216 and 12288 4 shares 0.0332 and 0.0370, 0.0369 and 0.0409, 6 0.0337 and 0.0377, 0.0354 and 0.0394;
    # 12288 -> 3072 6 0.0982, 0.0995; M = 4096, 1152 -> 4608 3 0.0114, 0.0123; M = 512, 3072 -> 9216 16 0.0218, 0.0203;
    # 12288 -> 3072 24 0.0424, 0.0383.
    many = M >= MANY_ROWS
    wanted = (6 if K >= 8192 else 4) if many else (24 if K >= 8192 else 16)
    shares = next(n for n in (wanted, 8, 4, 3, 2, 1) if n <= wanted and K // block_k % n == 0)
    return {
        "SHARES": shares,
        "OVERLAP": many,
        "BLOCK_M": 64,
        "BLOCK_K": block_k,
        "BLOCK_R": min(max(16, power_of_2(R)), 128),
        "num_warps": 4,
        "num_stages": 4,
    }


def added_columns(R: int) -> int:
    """Columns of x_down that the quantizer adds up at a time: two widths, so that few ranks compile it again."""
    return 32 if R <= 32 else 128


def folds_gelu(gpu: Generation, compute: str) -> str | None:
    """What computes a GELU between two quantized layers, for one of the compute modes.

    Returns:
        "output": the layer in front, behind its product; "input": the layer behind, while it quantizes; None: neither.
    """
    # H200, M = 4608, K = 12288: 0.158 ms for GELU and int8 quantizer, 0.146 in one, 0.095 for the quantizer alone.
    # Other generations were not timed.
    if compute == "w4a8":
        return "output"
    return "input" if gpu.gelu_in_quantizer else None


def power_of_2(value: int) -> int:
    """The smallest power of two that is not below a value, and at least 1."""
    return 1 << max(value - 1, 0).bit_length()


def _divisor(K: int, largest: int) -> int:
    """The largest power of two up to `largest` that divides K: a block of k that needs no mask."""
    return min(K & -K, largest)


@cache
def quantizer_tile(K: int, R: int) -> dict[str, int]:
    """Tile of the activation quantizers: BLOCK_M tokens in steps of BLOCK_K; R = 0 leaves out the down projection."""
    if R == 0:
        # Few rows and long steps. H200, int8, M = 4608, rank 32 with the weight, K = 3072 and 12288: 4 x 512 with 2
        # warps 0.0412 and 0.105 ms; 4 x 1024 with 4 0.0414 and 0.112; 16 x 256 with 4 0.0413 and 0.119; 1 x 1024 with 1
        # 0.0427 and 0.108. Rank 0: 0.0333 and 0.0806; 0.0333 and 0.0842; 0.0341 and 0.106; 0.0333 and 0.0920.
        # M = 4096, K = 1152, 4 x 128 with 2 warps 0.0069, 32 x 128 with 4 0.0077.
        block_k = _divisor(K, 512)
        return {
            "BLOCK_M": 4,
            "BLOCK_K": block_k,
            "BLOCK_R": 16,
            "SPLIT_K": 1,
            "num_warps": 2,
            "num_stages": 1,
        }
    # H200, M = 4608, R = 32: 0.0323 and 0.138 ms; without SPLIT_K 0.039 and 0.15; with three stages 0.049 and 0.21.
    block_k = _divisor(K, 256)
    return {
        "BLOCK_M": 16,
        "BLOCK_K": block_k,
        "BLOCK_R": max(16, power_of_2(R)),
        "SPLIT_K": 4 if block_k >= 64 else 1,
        "num_warps": 4,
        "num_stages": 1,
    }


@cache
def unpack_tile(op: str, N: int, K: int) -> dict[str, int]:
    """Tile of what reads a 4-bit weight once: BLOCK_N channels in steps of BLOCK_K."""
    # H200, 12288 x 3072 and 3072 x 12288: requantize 8 x 512 0.0287 and 0.0397 ms, 4 x 1024 0.0298 and 0.0327 (with the
    # channel scales known 0.0184 and 0.0210), 16 x 256 0.0328 and 0.0646; dequantize 0.028 to 0.029 with every tile
    # tried.
    # 1152 x 1152 and 4608 x 1152, channel scales known: 16 x 128 0.0039 and 0.0048, 4 x 128 0.0057 and 0.0080.
    elements, columns = {"requantize": (2048, 1024), "dequantize": (4096, 256)}[op]
    block_k = _divisor(K, columns)
    return {"BLOCK_N": max(4, elements // block_k), "BLOCK_K": block_k, "num_warps": 4}


GEMV_ROWS = 4  # rows that gemv_w4a16 takes; beyond, dequantizing the weight once and a matrix product is faster


@cache
def gemv_tile(M: int, K: int) -> dict[str, int]:
    """Tile of gemv_w4a16 for M rows of x: BLOCK_N channels in steps of BLOCK_K."""
    # H200, 3072 -> 18432 and 9216, one row, six weights in turn: 16 x 1024 with 4 warps 0.0133 and 0.0083 ms, with 2
    # 0.0136 and 0.0086; 8 x 1024 with 1 0.0138 and 0.0091; 16 x 512 with 2 0.0136 and 0.0103; 32 x 1024 with 2 0.0160
    # and 0.0103. Four rows: 8 x 512 with 2 0.0373 and 0.0233; 16 x 512 with 4 0.0335 and 0.0210, but it spills on gfx11
    # and gfx12; 16 x 1024 with 4 0.0285 and 0.0170, but it spills in Triton 3.8 and 3.9.
    block_n, columns = (16, 1024) if M <= 2 else (8, 512)
    block_k = _divisor(K, columns)
    return {"BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": max(1, block_k // 256)}


def _tile(m: int, n: int, k: int, warps: int, stages: int, **more: int) -> dict[str, int]:
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages, **more}


NATIVE_INT4_ROWS = 128  # every tile below divides it: the quantizer pads its rows to it
# Not timed: no sm_80, sm_86 or sm_89 was at hand. Machine code of one loop, instructions for each mma m16n8k64: 128 x
# 128 12.8, 128 x 64 13.1, no spills in either; 256 x 128 and 128 x 256 spill.
_NATIVE_INT4_TILES = {
    128: {"BLOCK_M": 128, "BLOCK_N": 128, "WARPS_M": 2, "WARPS_N": 4, "STAGES": 3},
    64: {"BLOCK_M": 128, "BLOCK_N": 64, "WARPS_M": 4, "WARPS_N": 1, "STAGES": 3},
}


def native_int4_tile(M: int, N: int, groups: int) -> dict[str, int]:
    """Tile of gemm_w4a4_native; N a multiple of 64."""
    tile = _NATIVE_INT4_TILES[128 if N % 128 == 0 and M > 128 else 64]
    return {**tile, "STAGE_GROUPS": 2 if groups % 2 == 0 else 1, "SWIZZLE_M": 8}


# Generation.tiles -> rows of (largest M, tile)
GEMM_W4A8_TILES = {
    # H200, M = 4608, 3072 -> 3072, 9216, 12288 and 12288 -> 3072: 128 x 128 0.087, 0.230, 0.314, 0.285 ms; 128 x 256
    # with 8 warps 0.109, 0.275, 0.385, 0.361. M = 512, 3072 -> 3072 and 12288 -> 3072: 64 x 64 0.0127, 0.0428; 64 x 128
    # 0.0136, 0.0425; 128 x 128 0.0162, 0.0606. M = 16: 16 x 32 0.0055, 0.0139; 16 x 64 0.0067, 0.0193.
    "hopper": (
        (16, _tile(16, 32, 256, 4, 4)),
        (512, _tile(64, 64, 128, 4, 4)),
        (1024, _tile(64, 128, 128, 4, 3)),
        (ANY, _tile(128, 128, 128, 4, 3)),
    ),
    "default": (
        (16, _tile(16, 64, 128, 4, 3)),
        (64, _tile(64, 64, 64, 4, 3)),
        (ANY, _tile(128, 128, 64, 8, 3)),
    ),
    "cpu": ((ANY, _tile(32, 32, 64, 4, 1)),),
}
GEMM_W4A4_TILES = {
    "rdna": ((ANY, _tile(64, 128, 64, 8, 3)),),
    "default": ((ANY, _tile(128, 128, 64, 8, 3)),),
    "cpu": ((ANY, _tile(32, 32, 64, 4, 1)),),
}
NVFP4_ROWS = 128  # every tile below divides it: the quantizer pads its rows to it
# Not timed: no sm_120 was at hand. With rows that repeat instead of padded ones four loads of a byte in each step of k
# are not asynchronous (Triton 3.7).
GEMM_NVFP4_TILES = {
    "default": ((ANY, _tile(128, 128, 128, 8, 3)),),
}
_GEMM_TILES = {"gemm_w4a8": GEMM_W4A8_TILES, "gemm_w4a4": GEMM_W4A4_TILES, "gemm_nvfp4": GEMM_NVFP4_TILES}


def fills_hopper(M: int, N: int) -> bool:
    """Whether gemm_w4a8_hopper has enough tiles of 128 x 256 to keep the GPU busy, whole or in halves (part_rounds).

    H200, against the tile above: M = 512, 3072 -> 3072 and 12288 -> 3072 (48 tiles, all cut) 0.0118 and 0.0387 ms
    against 0.0128 and 0.0448, 3072 -> 9216 and 12288 (144 and 192 tiles) 0.0294 and 0.0342 against 0.0428 and 0.0578;
    M = 1024, 3072 -> 3072 and 12288 -> 3072 (96 tiles) 0.0226 and 0.0666 against 0.0193 and 0.0696. Fewer tiles than 48
    were not timed.
    """
    tiles = -(-M // 128) * -(-N // 256)
    return tiles >= 96 or 48 <= tiles <= 66


def row_class(M: int, N: int, gpu: Generation, processors: int) -> tuple:
    """All that depends on the number of rows alone: calls of one class need the same compiled kernels.

    Args:
        processors: streaming multiprocessors of the GPU.
    """
    tables = [table.get(gpu.tiles, table["default"]) for table in _GEMM_TILES.values()]
    rows = tuple(next(i for i, (largest, _) in enumerate(table) if largest >= M) for table in tables)
    cut = None
    if gpu.wgmma and fills_hopper(M, N):
        tiles = -(-M // 128) * -(-N // 256)
        cut = part_rounds(tiles, min(processors, 2 * tiles))[1] > 0
    many = gpu.shares_from_k is not None and M >= MANY_ROWS
    return rows, cut, many, M < FEW_ROWS, M > NATIVE_INT4_ROWS, min(power_of_2(M), 2 * GEMV_ROWS)


HOPPER_PART_N = 128  # columns of half a tile of gemm_w4a8_hopper


def part_rounds(tiles: int, programs: int) -> tuple[int, int]:
    """How many whole tiles gemm_w4a8_hopper computes first, and how many single parts, the halves of tiles, then.

    Program p takes the items p, p + programs, ... of both. The tiles of a last round that needs at most half of the
    programs are cut, so that the round takes half the time. The kernel compiles this function and the next.
    """
    tail = tiles % programs
    if 2 * tail > programs:
        tail = 0
    return tiles - tail, 2 * tail


def part_position(item: int, whole: int, parts: int, tiles_m: int, tiles_n: int, swizzle_m: int) -> tuple[int, int]:
    """Where an item of one or two parts begins: its row in tiles and its column in parts.

    Up to swizzle_m tiles in a row share their columns, so that they find the weight in the cache.
    """
    tile = item if parts == 2 else whole + item // 2
    first_m = (tile // (swizzle_m * tiles_n)) * swizzle_m
    height = min(tiles_m - first_m, swizzle_m)
    within = tile % (swizzle_m * tiles_n)
    return first_m + within % height, (within // height) * 2 + (0 if parts == 2 else item % 2)


FEW_ROWS = 17  # below which GEMM kernels take narrow steps of the low-rank branch


def gemm_tile(op: str, M: int, K: int, gpu: Generation) -> dict[str, int]:
    """Tile of a GEMM kernel."""
    table = _GEMM_TILES[op]
    tile = next(tile for largest, tile in table.get(gpu.tiles, table["default"]) if largest >= M)
    tile = {"BLOCK_R": 16 if M < FEW_ROWS else 32, "SWIZZLE_M": 8, **tile}
    if op == "gemm_w4a4":
        del tile["BLOCK_K"]  # its block is the scale group
    else:
        tile["BLOCK_K"] = _divisor(K, tile["BLOCK_K"])
    return tile
